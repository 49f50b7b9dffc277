"""Requests that Schemathesis makes from the document at /openapi.json, sent over a real connection.

Good and bad ones of every operation, each in every role and in none: no 5xx, no answer that the document does not
describe, no success without the right to it. A few in the suite; more with

    CURTAIL_FUZZ=2000 python -m pytest tests/unit/controller/http/test_schemathesis.py
"""

from __future__ import annotations

import os

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)

from controller.http import openapi
from controller.http.routes import ROUTES
from curtail import wire

COUNT = int(os.environ.get("CURTAIL_FUZZ", "5"))
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
SCHEMA = schemathesis.openapi.from_dict(openapi.document("0"))
PARAMETERS = [pytest.param(route, id=f"{route.method.lower()} {route.path}") for route in ROUTES]
LEAVES = {wire.JOIN, wire.CREDENTIAL}  # with the good signature they would end the credential that all others use


@pytest.mark.parametrize("route", PARAMETERS)
def test_every_answer_is_one_of_the_document_and_nobody_gets_in(besieged, route):
    described = SCHEMA[route.path][route.method.lower()]
    cases = st.one_of(*(described.as_strategy(generation_mode=mode) for mode in GenerationMode))
    roles = st.sampled_from([None, "wrong", "viewer", "operator", *["agent"] * 3, *map(str, route.roles)])

    with requests.Session() as session:
        session.trust_env = False

        @settings(max_examples=COUNT, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
        @given(case=cases, role=roles, signed=st.booleans())
        def run(case, role, signed):
            case.headers = {k: v for k, v in dict(case.headers or {}).items() if k.lower() != "authorization"}
            if role == "wrong":
                case.headers["Authorization"] = "Bearer wrong"
            elif role is not None:
                case.headers["Authorization"] = f"Bearer {besieged.shown[role]}"
            if signed and route.path not in LEAVES:
                body = case.as_transport_kwargs(base_url=besieged.url).get("data") or b""
                body = body.encode() if isinstance(body, str) else body
                signer = besieged.signer
                case.headers["Curtail-Signature"] = signer.header(case.method.upper(), case.formatted_path, body)
            answer = case.call(base_url=besieged.url, session=session)
            case.validate_response(answer, checks=CHECKS)
            if route.roles and role not in map(str, route.roles):
                assert answer.status_code >= 400, "it succeeded without the right to"

        run()
