"""The one exception that means "the user can fix this": scripts print its sentence and exit with code 2."""


class UserError(ValueError):
    """Wrong input, named together with its fix in one sentence; nothing has been written when it is raised."""
