"""The only code that knows Ray: checkpoint actors, the Tune trial and searcher, launch. Mathematics lives in core.

This file imports nothing, so that an actor that only moves bytes never loads torch.
"""
