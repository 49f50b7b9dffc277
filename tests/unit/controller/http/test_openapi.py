"""The document at /openapi.json says what the application does."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from controller.http import openapi
from controller.http.app import STATUS_OF, create_app
from curtail import wire
from curtail.errors import WireError
from curtail.wire import bounds

DOCUMENT = openapi.document("0")
OPERATIONS = [
    pytest.param(path, method, operation, id=f"{method} {path}")
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]
KINDS = {name: kind for name, kind in vars(wire).items() if dataclasses.is_dataclass(kind)}


def test_the_application_serves_this_document():
    app = create_app(None, None, None, lambda: None)
    assert app.openapi() | {"info": None} == DOCUMENT | {"info": None}
    assert json.loads(json.dumps(app.openapi())) == app.openapi()


def kind_of(content):
    return KINDS[content["schema"]["$ref"].rsplit("/", 1)[1]]


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)
def test_every_example_decodes(path, method, operation):
    bodies = [operation["requestBody"]] if "requestBody" in operation else []
    for body in [*bodies, *operation["responses"].values()]:
        content = body["content"].get("application/json")
        if content is not None and "example" in content:
            kind = kind_of(content)
            assert isinstance(wire.decode(kind, json.dumps(content["example"])), kind)
    for parameter in operation.get("parameters", ()):
        if "pattern" in parameter["schema"]:
            assert re.fullmatch(parameter["schema"]["pattern"], parameter["example"])


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)
def test_every_refusal_is_a_problem_and_every_path_says_its_limits(path, method, operation):
    codes = set(operation["responses"])
    assert codes >= {"200", "400", "414", "431", "500"}
    if "requestBody" in operation:
        assert codes >= {"408", "413", "415"}
    if {} not in operation.get("security", [{}]):
        assert codes >= {"401", "403"}
    for code, response in operation["responses"].items():
        assert response["description"]
        if code not in ("200", "206", "503"):
            assert kind_of(response["content"]["application/json"]) is wire.Problem
    assert {code for _, code in STATUS_OF} - {422} <= set(openapi.MEANING)


def test_every_schema_is_closed_and_bounds_its_numbers_and_texts():
    def look(schema, where):
        for inner in (*schema.get("anyOf", ()), *schema.get("properties", {}).values()):
            look(inner, where)
        for key in ("items", "additionalProperties"):
            if isinstance(schema.get(key), dict):
                look(schema[key], where)
        if schema.get("type") in ("integer", "number"):
            assert schema["minimum"] < schema["maximum"], where
        if schema.get("type") == "array":
            assert schema["maxItems"], where
        if schema.get("type") == "string" and where.endswith("Request"):
            assert schema["maxLength"], where

    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert schema["additionalProperties"] is False and schema["required"] == list(schema["properties"])
        assert schema["description"]
        look(schema, name)


@pytest.mark.parametrize("text", ["a\x1bb", "a\x00", "a\x7f", "a\u202eb"])
def test_the_documents_pattern_and_the_rule_agree_on_what_can_be_printed(text):
    assert not re.fullmatch(openapi.PRINTABLE, text) and re.fullmatch(openapi.PRINTABLE, "line\n\té 世")
    with pytest.raises(WireError):
        bounds.Text(10).check(text, "x")
