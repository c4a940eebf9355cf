"""The one exception that means: the input is wrong, and this line says how to mend it."""


class UserError(Exception):
    """A mistake in configuration or data. Its message is one readable line: file, field, value, way out.

    Jobs print the line and exit with status 2; with ``--debug`` they show the traceback as well.
    """
