"""Adapters: milepost as the store of other frameworks. One package and one extra each; nothing is imported unasked."""
