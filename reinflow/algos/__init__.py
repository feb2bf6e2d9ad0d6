"""How policies learn, whatever their family: losses, critics, advantages, noise schedules and gradient steps."""
