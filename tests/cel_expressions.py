"""Says what a ValidatingAdmissionPolicy says of pods. Started with the Python of cluster-tools.

Standard input: JSON, the policy's spec and requests ({"object", "request"}). Standard output: for
each of those null where the policy is not about it, else the messages of what it fails, and
"error: ..." for an expression that cannot be evaluated.
"""

import json
import sys
from typing import Any

import celpy


def main() -> None:
    given = json.load(sys.stdin)
    policy = Policy(given["policy"])
    json.dump([policy.failures(request) for request in given["requests"]], sys.stdout)


class Policy:
    def __init__(self, spec: dict[str, Any]) -> None:
        self._environment = celpy.Environment()
        self._conditions = [self._compiled(one["expression"]) for one in spec["matchConditions"]]
        self._variables = {
            one["name"]: self._compiled(one["expression"]) for one in spec["variables"]
        }
        self._validations = [
            (one["message"], self._compiled(one["expression"])) for one in spec["validations"]
        ]

    def _compiled(self, expression: str) -> Any:
        return self._environment.program(self._environment.compile(expression))

    def failures(self, request: dict[str, Any]) -> list[str] | None:
        known = {name: celpy.json_to_cel(value) for name, value in request.items()}
        if not all(condition.evaluate(known) for condition in self._conditions):
            return None
        variables = celpy.celtypes.MapType()
        for name, program in self._variables.items():
            found = program.evaluate({**known, "variables": variables})
            variables[celpy.celtypes.StringType(name)] = found
        return [
            said
            for message, program in self._validations
            for said in self._failure(message, program, {**known, "variables": variables})
        ]

    def _failure(self, message: str, program: Any, known: dict[str, Any]) -> list[str]:
        try:
            return [] if program.evaluate(known) else [message]
        except celpy.CELEvalError as error:  # failurePolicy: Fail
            return [f"error: {error}"]


if __name__ == "__main__":
    main()
