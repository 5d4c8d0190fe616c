"""nft's own listing of hotplane's tables as elements, to compare with what hotplane reads and writes as bytes."""

import json
import subprocess

Listed = dict[str, dict[str, str]]
"""Name of a set or map to key text to the rest of the element's text."""


def nft(namespace: str, *arguments: str) -> str:
    command = ["ip", "netns", "exec", namespace, "nft", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _part(value: object) -> str:
    """One field of a key or data, a protocol as its number."""
    return {"tcp": "6", "udp": "17", "sctp": "132"}.get(str(value), str(value))


def _text(value: object) -> str:
    if isinstance(value, dict) and "concat" in value:
        return " . ".join(map(_part, value["concat"]))
    if isinstance(value, dict) and "goto" in value:
        return f"goto {value['goto']['target']}"
    return _part(value)


def listed(namespace: str, family: str, table: str = "hotplane") -> Listed:
    """What `nft -j list table` prints of sets and maps without an interval or timeout flag, empty ones left out."""
    found: Listed = {}
    for item in json.loads(nft(namespace, "-j", "list", "table", family, table))["nftables"]:
        content = item.get("set") or item.get("map")
        if content is None or content.get("flags") or "elem" not in content:
            continue
        elements = found.setdefault(content["name"], {})
        for element in content["elem"]:
            key, data = element if "map" in item else (element, None)
            comment = ""
            if isinstance(key, dict) and "elem" in key:
                comment = f' comment "{key["elem"]["comment"]}"'
                key = key["elem"]["val"]
            elements[_text(key)] = comment + (f" : {_text(data)}" if data is not None else "")
    return found
