"""In-memory tables that parse restore input: the iptables plane without a kernel, for tests and dry runs."""

from dataplane.kernel.iptables import IptablesError
from dataplane.model.net import Family

_BUILT_IN = {
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
}
_VERDICTS = {"ACCEPT", "DROP", "REJECT", "RETURN", "MARK", "MASQUERADE", "DNAT"}

_Chains = dict[str, list[str]]


class FakeTables:
    """`kernel.iptables.Tables` in memory. Each table of a restore is taken whole or not at all, as in the kernel.

    restored: every text given to `restore`, oldest first. refuse: a text whose occurrence in a table's block makes
    that table fail, "" = none.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self.restored: list[str] = []
        self.refuse = ""
        self._tables: dict[str, _Chains] = {}

    def present(self) -> frozenset[str]:
        return frozenset(self._tables)

    def save(self, table: str) -> str:
        chains = self._tables.setdefault(table, {chain: [] for chain in _BUILT_IN[table]})
        declared = [f":{c} {'ACCEPT' if c in _BUILT_IN[table] else '-'} [0:0]" for c in chains]
        rules = [f"-A {chain} {rule}" for chain, held in chains.items() for rule in held]
        return "\n".join([f"*{table}", *declared, *rules, "COMMIT", ""])

    def restore(self, text: str) -> None:
        self.restored.append(text)
        for block in text.split("COMMIT\n")[:-1]:
            head, *lines = block.splitlines()
            table = head.removeprefix("*")
            held = self._tables.get(table, {chain: [] for chain in _BUILT_IN[table]})
            chains = {chain: list(rules) for chain, rules in held.items()}
            for line in lines:
                self._line(chains, line)
            self._check(chains)
            self._tables[table] = chains

    def _line(self, chains: _Chains, line: str) -> None:
        if self.refuse and self.refuse in line:
            raise IptablesError(f"refused: {line}")
        if line.startswith(":"):
            chains[line[1:].split(" ", 1)[0]] = []
            return
        verb, chain, *rest = line.split(" ", 2)
        if chain not in chains:
            raise IptablesError(f"no chain {chain}: {line}")
        rule = rest[0] if rest else ""
        if verb == "-A":
            chains[chain].append(rule)
        elif verb == "-I":
            chains[chain].insert(0, rule)
        elif verb == "-D" and rule in chains[chain]:
            chains[chain].remove(rule)
        elif verb == "-X" and not chains[chain]:
            del chains[chain]
        else:
            raise IptablesError(f"cannot do: {line}")

    @staticmethod
    def _check(chains: _Chains) -> None:
        for rules in chains.values():
            for rule in rules:
                target = rule.partition("-j ")[2].split(" ", 1)[0]
                if target and target not in _VERDICTS and target not in chains:
                    raise IptablesError(f"no chain {target} to jump to: {rule}")
