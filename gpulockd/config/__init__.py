"""What is decided about configurations: changes and their undoing, when one is stable, how a system is. All pure.

Its law: no await, no clock, no file, no connection. Who acts on it is `gpulockd.daemon.configuring`.
"""
