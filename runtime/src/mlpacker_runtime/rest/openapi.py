"""The OpenAPI 3.1 description of one pipeline: typed by its signature, with its packed sample as the example."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..signature import Field
from . import JSON, Served, sample, v2
from .binary import DATATYPES
from .rows import Reader

EXAMPLE_ROWS = 2
Schema = dict[str, Any]


def describe(served: Served, reader: Reader, *, guarded: bool = False) -> Schema:
    """guarded: the routes want a key."""
    title = served.name
    info = {"title": title, "version": served.version, "description": _about(served)}
    paths = {**_scoring(served, reader), **_about_the_model(served), **_about_the_server()}
    document: Schema = {
        "openapi": "3.1.0",
        "info": info,
        "paths": paths,
        "components": {"schemas": _schemas(served)},
    }
    if guarded:
        schemes = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        document["components"]["securitySchemes"] = schemes
        document["security"] = [{"bearer": []}, {"key": []}]
    return document


def _about(served: Served) -> str:
    said = str(served.manifest.metadata.get("description", "")).strip()
    digest = f"Package `{served.digest}`." if served.digest else "A draft, not packed."
    return f"{said}\n\n{digest}".strip()


# --- schemas ----------------------------------------------------------------------------------------------------------


def schema_of(field: Field) -> Schema:
    """What a value of this column is, in one row."""
    schema = _of_value(field)
    for size in reversed(field.shape[1:]):
        schema = {"type": "array", "items": schema}
        if size >= 0:
            schema |= {"minItems": size, "maxItems": size}
    return schema


def _of_value(field: Field) -> Schema:
    schema = _of_dtype(field)
    null = field.nullable or field.dtype.startswith("float")
    if null and "type" in schema:
        schema["type"] = [schema["type"], "null"]
        if "enum" in schema:
            schema["enum"] = [*schema["enum"], None]
    elif null and "enum" in schema:
        schema["enum"] = [*schema["enum"], None]
    return schema


def _of_dtype(field: Field) -> Schema:
    if field.dtype.startswith("float"):
        return {"type": "number"}
    if field.dtype == "bool":
        return {"type": "boolean"}
    if field.numeric:
        info = np.iinfo(field.numpy)
        return {"type": "integer", "minimum": int(info.min), "maximum": int(info.max)}
    if field.dtype == "category" and field.categories:
        return {"enum": list(field.categories)}
    if field.dtype == "bytes":
        return {"type": "string", "contentEncoding": "base64"}
    if field.dtype == "datetime":
        return {"type": "string", "format": "date-time"}
    return {"type": "string"} if field.dtype == "string" else {}


def _of_output(field: Field) -> Schema:
    """Answers may be null where a model gave none, whatever their type."""
    schema = schema_of(field)
    if isinstance(schema.get("type"), str) and len(field.shape) == 1:
        schema["type"] = [schema["type"], "null"]
    return schema


def _schemas(served: Served) -> dict[str, Schema]:
    ref = "#/components/schemas/"
    row = {
        "type": "object",
        "properties": {f.name: schema_of(f) for f in served.inputs},
        "required": [f.name for f in served.inputs if f.required],
    }
    answer: Schema = {"type": "object", "properties": {f.name: _of_output(f) for f in served.outputs}}
    failed = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    return {
        "Row": row,
        "Values": _values(served.inputs),
        "Answer": answer,
        "Outcome": {
            "description": "A row's answer; null where it was dropped, a list where it has several answers.",
            "anyOf": [
                {"$ref": f"{ref}Answer"},
                {"type": "array", "items": {"$ref": f"{ref}Answer"}},
                failed,
                {"type": "null"},
            ],
        },
        "Error": failed,
        "MLflowError": {
            "type": "object",
            "properties": {"error_code": {"type": "string"}, "message": {"type": "string"}},
            "required": ["error_code", "message"],
        },
        "Tensor": _tensor(),
        "InferRequest": _infer_request(),
        "InferResponse": _infer_response(),
    }


def _values(fields: tuple[Field, ...]) -> Schema:
    """A row as a list, in the signature's order."""
    if len(fields) == 1:
        return {**schema_of(fields[0]), "description": f"A row's {fields[0].name!r}."}
    items = [schema_of(f) for f in fields]
    schema: Schema = {
        "type": "array",
        "prefixItems": items,
        "items": False,
        "minItems": len(items),
        "maxItems": len(items),
    }
    return {
        **schema,
        "description": "A row's values in the order " + ", ".join(f.name for f in fields[:40]) + ".",
    }


def _tensor() -> Schema:
    return {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
            "datatype": {"type": "string", "enum": list(DATATYPES)},
            "data": {"type": "array", "description": "Flat or nested, row by row."},
            "parameters": {"type": ["object", "null"]},
        },
        "required": ["name", "shape", "datatype"],
    }


def _infer_request() -> Schema:
    output = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "parameters": {"type": ["object", "null"]}},
        "required": ["name"],
    }
    return {
        "type": "object",
        "properties": {
            "id": {"type": ["string", "null"]},
            "parameters": {"type": ["object", "null"]},
            "inputs": {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}, "minItems": 1},
            "outputs": {"type": ["array", "null"], "items": output},
        },
        "required": ["inputs"],
    }


def _infer_response() -> Schema:
    return {
        "type": "object",
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "outputs": {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}},
        },
        "required": ["model_name", "outputs"],
    }


# --- examples ---------------------------------------------------------------------------------------------------------


def example_rows(served: Served, count: int = EXAMPLE_ROWS) -> list[dict[str, Any]]:
    """The sample's first rows; where there is no sample, a row of blanks of the right types."""
    return sample.rows(served.sample, count) or [{f.name: _blank(f) for f in served.inputs}]


def _blank(field: Field) -> Any:
    value: Any = (
        field.categories[0]
        if field.categories
        else {"string": "text", "datetime": "2024-05-01T12:00:00", "bytes": "", "bool": True}.get(
            field.dtype, 0
        )
    )
    for size in reversed(field.shape[1:]):
        value = [value] * max(size, 1)
    return value


def example_infer(served: Served) -> dict[str, Any]:
    """A V2 request of the sample's first rows."""
    rows = example_rows(served)
    inputs = []
    for field, meta in zip(served.inputs, v2.metadata_of(served.inputs), strict=True):
        values = [row.get(field.name) for row in rows]
        if meta["datatype"] == "INT64" and field.dtype == "datetime":
            meta = {**meta, "datatype": "BYTES"}
        if meta["datatype"] == "FP16":
            meta = {**meta, "datatype": "FP32"}
        inputs.append({**meta, "shape": list(_shape(values)), "data": values})
    return {"inputs": inputs}


def _shape(values: Any) -> tuple[int, ...]:
    return (len(values), *(_shape(values[0]) if values else ())) if isinstance(values, list) else ()


# --- paths ------------------------------------------------------------------------------------------------------------


def _body(schema: Schema, example: Any) -> Schema:
    return {"required": True, "content": {JSON: {"schema": schema, "example": example}}}


def _answers(schema: Schema, error: str = "Error", *codes: str) -> Schema:
    said = {
        "400": "The request does not fit the model.",
        "401": "A key is needed.",
        "413": "Too long.",
        "415": "Not a type this route reads.",
        "431": "The head is too long.",
        "503": "Too much is waiting, or a part is being started.",
    }
    refusals = {
        code: {
            "description": said[code],
            "content": {JSON: {"schema": {"$ref": f"#/components/schemas/{error}"}}},
        }
        for code in ("400", "401", "413", *codes, "503")
    }
    return {"200": {"description": "Answered.", "content": {JSON: {"schema": schema}}}, **refusals}


def _scoring(served: Served, reader: Reader) -> Schema:
    ref = "#/components/schemas/"
    rows = example_rows(served)
    partial = {
        "name": "partial",
        "in": "query",
        "schema": {"type": "boolean"},
        "description": 'Rows may fail alone, as {"error": …}.',
    }
    row, values = {"$ref": f"{ref}Row"}, {"$ref": f"{ref}Values"}
    asked = {"anyOf": [row, {"type": "array", "items": row}, {"type": "array", "items": values}]}
    outcome = {"$ref": f"{ref}Outcome"}
    predict = {
        "summary": "Answer a row, or a list of rows",
        "operationId": "predict",
        "tags": ["scoring"],
        "parameters": [partial],
        "requestBody": _body(asked, rows),
        "responses": _answers({"anyOf": [outcome, {"type": "array", "items": outcome}]}, "Error", "415"),
    }
    infer = {
        "summary": "Open Inference Protocol V2",
        "operationId": "infer",
        "tags": ["scoring"],
        "requestBody": _body({"$ref": f"{ref}InferRequest"}, example_infer(served)),
        "responses": _answers({"$ref": f"{ref}InferResponse"}, "Error", "415"),
    }
    invocations = {
        "summary": "MLflow's scoring protocol",
        "operationId": "invocations",
        "tags": ["scoring"],
        "requestBody": _body(_mlflow(), {"dataframe_records": rows}),
        "responses": _mlflow_answers(),
    }
    infer_path = f"/v2/models/{served.name}/infer"
    return {"/predict": {"post": predict}, infer_path: {"post": infer}, "/invocations": {"post": invocations}}


def _mlflow() -> Schema:
    rows = {"type": "array", "items": {"$ref": "#/components/schemas/Row"}}
    split = {
        "type": "object",
        "properties": {
            "columns": {"type": ["array", "null"], "items": {"type": ["string", "integer"]}},
            "data": {"type": "array", "items": {"type": "array"}},
        },
        "required": ["data"],
    }
    params = {"type": ["object", "null"]}
    one_of = {
        "dataframe_records": rows,
        "dataframe_split": split,
        "instances": {"type": "array"},
        "inputs": {"type": ["object", "array"]},
    }
    return {
        "oneOf": [
            {
                "type": "object",
                "properties": {k: v, "params": params},
                "required": [k],
                "additionalProperties": False,
            }
            for k, v in one_of.items()
        ]
    }


def _mlflow_answers() -> Schema:
    answers = _answers(
        {"type": "object", "properties": {"predictions": {"type": "array"}}, "required": ["predictions"]},
        "MLflowError",
    )
    text = {
        "description": "Not a type this route reads.",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
    return {**answers, "415": text}


def _get(summary: str, tag: str, operation: str, kind: str = JSON, *also: str) -> Schema:
    content = {kind: {"schema": {} if kind == JSON else {"type": "string"}}}
    codes = {code: {"description": "Not so.", "content": content} for code in also}
    refused = {
        "401": {
            "description": "A key is needed.",
            "content": {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
    }
    return {
        "get": {
            "summary": summary,
            "operationId": operation,
            "tags": [tag],
            "responses": {"200": {"description": "Answered.", "content": content}, **codes, **refused},
        }
    }


def _about_the_model(served: Served) -> Schema:
    base = f"/v2/models/{served.name}"
    return {
        base: _get("The model's name, inputs and outputs", "model", "model"),
        f"{base}/ready": _get("Whether the model answers", "model", "model_ready", JSON, "503"),
        f"{base}/stats": _get("What was counted", "model", "stats"),
        f"{base}/config": _get("The model's configuration", "model", "config"),
    }


def _about_the_server() -> Schema:
    text = "text/plain"
    return {
        "/v2": _get("The server's name and extensions", "server", "server"),
        "/v2/health/live": _get("Whether the server runs", "server", "live"),
        "/v2/health/ready": _get("Whether the server answers", "server", "ready", JSON, "503"),
        "/ping": _get("Whether the server answers", "server", "ping", text, "503"),
        "/health": _get("Whether the server answers", "server", "health", text, "503"),
        "/version": _get("The runtime's version", "server", "version", text),
        "/metrics": _get("Numbers for Prometheus", "server", "metrics", text),
    }
