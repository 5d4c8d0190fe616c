"""What `-o json` prints, view by view: types with a sentence on each field, from which the JSON Schemas are made.

Beside this text lie the schemas themselves (`*.json`), which are part of the wheel; docs/json.md shows them to people.
`python -m ctl.schema` makes both from the types.
"""
