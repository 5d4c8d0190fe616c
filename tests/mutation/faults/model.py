"""Faults in reading Kubernetes objects."""

from tests.mutation.mutation import Mutation

_VALIDATE, _DECODE = ("test_model_validate.py",), ("test_model_decode.py",)

MODEL = (
    Mutation(
        "an endpoint that does not say whether it is ready is not",
        "slices.py",
        "ready = conditions.ready is not False",
        "ready = conditions.ready is True",
        _VALIDATE,
    ),
    Mutation(
        "what is not said to terminate does",
        "slices.py",
        "result.append(Endpoint(address, traits(ready, serving, conditions.terminating is True, node)))",
        "result.append(Endpoint(address, traits(ready, serving, conditions.terminating is not False, node)))",
        _VALIDATE,
    ),
    Mutation(
        "a malformed source range is left out and the others hold",
        "validate.py",
        "return ranges if sound else ()",
        "return ranges",
        _VALIDATE,
    ),
    Mutation(
        "an address of ipMode Proxy gets a frontend",
        "validate.py",
        'elif item.ip and item.ip_mode != "Proxy":',
        "elif item.ip:",
        _VALIDATE,
    ),
    Mutation(
        "an affinity timeout beyond a day is taken",
        "validate.py",
        "if not 1 <= seconds <= MAX_AFFINITY_SECONDS:",
        "if not 1 <= seconds:",
        _VALIDATE,
    ),
    Mutation(
        "external policy Local holds for a Service of type ClusterIP",
        "validate.py",
        "external_local=external_local and (kind in _NODE_PORT_TYPES or bool(external_ips)),",
        "external_local=external_local,",
        _VALIDATE,
    ),
    Mutation(
        "leading zeros make an address octal, and invalid",
        "net.py",
        'plain = _LEADING_ZEROS.sub("", text)',
        "plain = text",
        (*_VALIDATE, "test_net.py"),
    ),
    Mutation(
        "one item of a wrong type costs the whole list",
        "decode.py",
        "items[index] = None",
        "items.clear()",
        _DECODE,
    ),
    Mutation(
        "an object of another version of its group is taken",
        "decode.py",
        "if version is not None and version != _EXPECTED[kind] and (skipped := _other_version(kind, version)):",
        "if version is None and (skipped := _other_version(kind, version or '')):",
        _DECODE,
    ),
    Mutation(
        "a Pod that has ended still publishes its ports",
        "model/pods.py",
        '_FINISHED = ("Succeeded", "Failed")',
        '_FINISHED = ("Succeeded",)',
        ("test_model_pods.py", "test_plan_pods.py"),
    ),
)
