"""The live view of a pool: what is asked of the daemon, how it reads in rows, and the screen that shows it."""
