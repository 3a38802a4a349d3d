"""The page's server on 127.0.0.1, and putting decisions into effect."""

from __future__ import annotations

import getpass
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quasitile.errors import InputError
from quasitile.folders import read_jsonl, write_json, write_jsonl
from quasitile.progress import say
from quasitile.reading.curate.decisions import Conflict, Decisions, item_of

HOST = "127.0.0.1"
PAGE = Path(__file__).with_name("page.html")


def curate(reading: str | Path, port: int = 8765, who: str = "", apply: bool = False) -> dict[str, Any]:
    """Show a reading folder's questions in the browser, until Ctrl-C; or put the decisions into effect.

    Args:
        reading: A folder that `read` made.
        port: On 127.0.0.1; 0 takes a free one.
        who: The name that decisions carry until another is typed in; the user's name where empty.
        apply: Serve nothing: write the decisions into `questions.jsonl`.

    Raises:
        InputError: No reading folder, or the packages of `quasitile[curate]` are missing.
    """
    reading = Path(reading)
    for name in ("sections.jsonl", "questions.jsonl"):
        if not (reading / name).is_file():
            raise InputError(f"{reading / name} does not exist; give a folder that `quasitile read` made")
    if apply:
        return apply_decisions(reading)
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise InputError("the page needs Starlette and uvicorn; install quasitile[curate]")
    import uvicorn

    decisions = Decisions(reading)
    server = uvicorn.Server(
        uvicorn.Config(application(decisions, who or getpass.getuser()), log_level="warning", lifespan="off")
    )
    sock = uvicorn.Config("", host=HOST, port=port, log_level="error").bind_socket()
    say(f"  http://{HOST}:{sock.getsockname()[1]}/ shows {len(decisions.items)} questions; Ctrl-C ends")
    server.run([sock])
    sock.close()
    decided = sum(bool(item.decisions) for item in decisions.items.values())
    return {"num_questions": len(decisions.items), "num_decided": decided, "path": str(decisions.path)}


def application(decisions: Decisions, who: str) -> Any:
    """The web application: one page and a handful of JSON addresses."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, Response
    from starlette.routing import Route

    def refused(request: Request) -> bool:
        """Whether a page of another site asks: a browser then names another host or origin."""
        host = request.headers.get("host", "")
        origin = request.headers.get("origin", f"http://{host}")
        return host.rpartition(":")[0] not in (HOST, "localhost") or origin != f"http://{host}"

    async def page(request: Request) -> Response:
        if refused(request):
            return Response(status_code=403)
        return HTMLResponse(PAGE.read_text(encoding="utf-8").replace('"WHO"', json.dumps(who).replace("<", "\\u003c")))

    async def sections(request: Request) -> Response:
        if refused(request):
            return Response(status_code=403)
        query = request.query_params
        return JSONResponse(decisions.overview(number(query.get("offset")), min(500, number(query.get("limit"), 100))))

    async def section(request: Request) -> Response:
        index = request.path_params["index"]
        if refused(request) or index >= len(decisions.sections):
            return Response(status_code=404)
        return JSONResponse(decisions.section(index))

    async def changes(request: Request) -> Response:
        return Response(status_code=403) if refused(request) else JSONResponse(
            decisions.changes(number(request.query_params.get("since")))
        )  # fmt: skip

    async def decide(request: Request) -> Response:
        if refused(request) or "json" not in request.headers.get("content-type", ""):
            return Response(status_code=403)
        try:
            body = await request.json()
            name, action = str(body.get("who") or who)[:80], body.get("action")
            if action == "undo":
                return JSONResponse({"item": decisions.undo(name)})
            if action == "add":
                return JSONResponse({"item": decisions.add(int(body.get("section", -1)), name, body)})
            item = decisions.decide(str(action), str(body.get("item")), name, int(body.get("version", -1)), body)
            return JSONResponse({"item": item})
        except Conflict as conflict:
            return JSONResponse({"item": decisions.items[str(conflict)].state()}, status_code=409)
        except (InputError, ValueError, TypeError, AttributeError) as error:
            return JSONResponse({"error": str(error)}, status_code=400)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/api/sections", sections),
            Route("/api/section/{index:int}", section),
            Route("/api/changes", changes),
            Route("/api/decide", decide, methods=["POST"]),
        ]
    )


def number(text: str | None, otherwise: int = 0) -> int:
    """A number of an address."""
    return int(text) if text and text.isdigit() else otherwise


def apply_decisions(reading: Path) -> dict[str, Any]:
    """Write the decisions into `questions.jsonl`; what was made stays in `questions.made.jsonl`.

    Dropped questions go to `dropped.jsonl` with who dropped them. Doing it twice changes nothing.
    """
    made = reading / "questions.made.jsonl"
    if not made.is_file():
        write_jsonl(made, read_jsonl(reading / "questions.jsonl"))
        write_jsonl(reading / "dropped.made.jsonl", read_jsonl(reading / "dropped.jsonl"))
    write_jsonl(reading / "questions.jsonl", read_jsonl(made))
    decisions = Decisions(reading)
    facts: dict[str, list[dict[str, Any]]] = {}
    for row in read_jsonl(made):
        facts.setdefault(row["metadata"]["fact"], []).append(row)
    by_section: dict[int, list[dict[str, Any]]] = {}
    dropped = read_jsonl(reading / "dropped.made.jsonl")
    places = {(row["document"], row["section"]): index for index, row in enumerate(decisions.sections)}
    template: dict[str, dict[str, Any]] = {}
    for rows in facts.values():
        metadata = rows[0]["metadata"]
        template[metadata["document"]] = rows[0]
        place = places[metadata["document"], metadata["section"]]
        state = decisions.items[item_of(rows, place).name].state()
        if state["status"] == "dropped":
            for row in rows:
                row["metadata"]["reason"] = f"dropped by {state['who']}"
            dropped += rows
        else:
            by_section.setdefault(place, []).extend(decided(rows, state))
    for item in decisions.items.values():
        state = item.state()
        if state["source"] == "curated" and state["status"] == "kept" and item.decisions[0]["action"] == "add":
            section = decisions.sections[item.section]
            by_section.setdefault(item.section, []).extend(added(state, section, template.get(section["document"])))
    questions = []
    for place in sorted(by_section):
        for order, row in enumerate(by_section[place]):
            row["metadata"]["order"] = order
            row["metadata"]["id"] = f"{row['metadata']['document']}/{row['metadata']['section']}/{order}"
            questions.append(row)
    write_jsonl(reading / "questions.jsonl", questions)
    write_jsonl(reading / "dropped.jsonl", dropped)
    states = [item.state()["status"] for item in decisions.items.values()]
    summary = {"num_questions": len(questions), **{f"num_{name}": states.count(name) for name in ("kept", "dropped", "open")}}
    write_json(reading / "curation.json", summary)
    return summary


def decided(rows: list[dict[str, Any]], state: dict[str, Any]) -> list[dict[str, Any]]:
    """A fact's rows with what was edited; wordings beyond those that were made take the first row's place and split."""
    if state["status"] == "open":
        return rows
    out = []
    for phrasing, question in enumerate(state["questions"]):
        row = json.loads(json.dumps(rows[min(phrasing, len(rows) - 1)]))
        edited = row["messages"][1]["content"] != state["answer"]
        row["messages"][0]["content"], row["messages"][1]["content"] = question, state["answer"]
        row["metadata"].update(phrasing=phrasing, curated_by=state["who"])
        if edited:
            row["metadata"]["accepted"] = [state["answer"]]
            quoted = row["metadata"]["evidence"]["text"].replace('"', "'")
            row["messages"][1]["reasoning_content"] = f'The text says: "{quoted}" So the answer is {state["answer"]}.'
        out.append(row)
    return out


def added(state: dict[str, Any], section: dict[str, Any], like: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The rows of a question that an expert added."""
    evidence = section["text"][state["start"] : state["stop"]]
    quoted = evidence.replace('"', "'")
    rows = []
    for phrasing, question in enumerate(state["questions"]):
        trace = f'The text says: "{quoted}" So the answer is {state["answer"].rstrip(".")}.'
        metadata = {
            "id": "", "document": section["document"], "section": section["section"], "section_title": section["title"],
            "type": section["type"], "order": 0, "kind": "expert", "source": "curated",
            "fact": f"{section['document']}/{section['section']}/{state['item']}", "phrasing": phrasing,
            "evidence": {"text": evidence, "start": state["start"], "stop": state["stop"]}, "accepted": [state["answer"]],
            "quality": 1.0, "split": section["split"], "licence": like["metadata"]["licence"] if like else "",
            "curated_by": state["who"],
        }  # fmt: skip
        answer = {"role": "assistant", "content": state["answer"], "reasoning_content": trace}
        rows.append({"messages": [{"role": "user", "content": question}, answer], "metadata": metadata})
    return rows
