"""Make the schemas and docs/json.md from the types: `python -m ctl.schema`, in a checkout."""

from ctl.schema.document import FOLDER, write

if __name__ == "__main__":
    write(FOLDER, FOLDER.parents[1] / "docs/json.md")
