"""What `gpulockd doctor` looks at: one module a part of the host, each with findings of one line."""
