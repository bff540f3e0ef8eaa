"""Ablations: one recipe, many runs that differ in one thing each, and a ledger of what came of them.

`recipe` says what a recipe may hold, `plan` turns it into runs in their order, `derived` makes the data of controls,
`ledger` keeps finished runs, `intervals` says what they show together.
"""
