"""The machines: what they have, whether they agree, what they cost, and when they leave."""
