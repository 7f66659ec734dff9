"""Training of one network, of several as one program, and by several processes."""
