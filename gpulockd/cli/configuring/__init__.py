"""The commands below `gpulockd config`, one module for those that belong together."""
