"""Shares: exactly one job's results, to read, for whom they are and as long as they last."""

from __future__ import annotations

import hashlib
import html
import io
import json
import os
import re
import socket
import zipfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from tests.integration.conftest import CONFIG, Box, Json, User, problem, serving, tcp_of
from tests.service import DEADLINE_S, wait_for

only_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
WITH_TCP = CONFIG.replace('""', '"127.0.0.1:0"', 1)
EVIL = '<script>alert("1")</script>&amp;'


@pytest.fixture(scope="module")
def http(shared: Box) -> Iterator[httpx.Client]:
    """A client over TCP."""
    with httpx.Client(base_url=f"http://127.0.0.1:{tcp_of(shared)[1]}", timeout=DEADLINE_S) as made:
        yield made


@pytest.fixture(scope="module")
def job(shared: Box) -> str:
    """A job with results, some of whose names are not nice."""
    line = (
        "echo hello; cd $AITBC_ARTIFACTS_DIR; echo '<script>alert(2)</script>' > page.html;"
        " echo x > 'a b%2e\"<b>&.txt'; printf y > $(printf 'no\\377utf'); mkdir d; echo z > d/e"
    )
    ended = shared.shell(line, name=EVIL)
    assert ended["status"] == "completed", ended
    job: str = ended["job_id"]
    return job


def share(box: Box, job: str, **wish: object) -> Json:
    answer = box.http.post(f"/v1/jobs/{job}/share", json=wish)
    assert answer.status_code == 201, answer.text
    made: Json = answer.json()
    return made


def seconds_between(first: str, second: str) -> float:
    from datetime import datetime

    return (datetime.fromisoformat(second) - datetime.fromisoformat(first)).total_seconds()


# -- links --------------------------------------------------------------------------------------


def test_a_link_gives_the_package_to_anybody(shared: Box, http: httpx.Client, job: str) -> None:
    made = share(shared, job)
    assert made["url"].startswith(f"{http.base_url}/s/".replace("//s", "/s"))
    assert (made["job_id"], made["with"], made["uses"]) == (job, None, 0)
    assert seconds_between(made["created_at"], made["expires_at"]) <= 7 * 86400
    answer = httpx.get(made["url"], timeout=DEADLINE_S)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as package:
        assert package.read(f"{job}/result.txt") == b"hello\n"
    part = httpx.get(made["url"], headers={"range": "bytes=10-19"}, timeout=DEADLINE_S)
    assert (part.status_code, part.content) == (206, answer.content[10:20])
    head = httpx.head(made["url"], timeout=DEADLINE_S)
    assert (head.status_code, head.content) == (200, b"")
    for each in (answer, part, head):
        assert each.headers["cache-control"] == "private, no-store"
        assert each.headers["referrer-policy"] == "no-referrer"


@only_root
def test_a_link_asks_nobody_who_he_is(shared: Box, job: str) -> None:
    path = share(shared, job)["url"].partition("/s/")[2]
    # A uid that is no user's, and that of a system's service.
    for uid in (54321, 33):
        os.seteuid(uid)
        try:
            sock = socket.create_connection(tcp_of(shared), DEADLINE_S)
        finally:
            os.seteuid(0)
        with sock:
            sock.sendall(f"GET /s/{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert sock.recv(100).startswith(b"HTTP/1.1 200")


def test_a_link_gives_its_job_and_nothing_else(shared: Box, http: httpx.Client, job: str) -> None:
    token = share(shared, job)["url"].rpartition("/")[2]
    other = shared.run("true")["job_id"]
    assert http.get(f"/s/{token}/files/result.txt").content == b"hello\n"
    for path in (
        f"/s/{token}/files/../../{other}/result.txt", f"/s/{token}/files/%2e%2e/{other}/result.txt",
        f"/s/{token}/files//etc/passwd", f"/s/{token}/files/", f"/s/{token}/files/logs",
        f"/s/{token}/../v1/jobs", f"/s/{token}/", f"/s/{token}/cancel", f"/s/{other}", "/s/",
        f"/s/{token[:-1]}", f"/s/{token}x", f"/s/{token.swapcase()}", "/s/" + "x" * 5000,
    ):  # fmt: skip
        raw = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        with socket.create_connection(tcp_of(shared), DEADLINE_S) as sock:
            sock.sendall(raw.encode())
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 404"), (path, answer)
    for method in ("POST", "PUT", "DELETE"):
        assert http.request(method, f"/s/{token}").status_code == 405


def test_only_a_hash_of_a_link_is_kept(shared: Box, job: str) -> None:
    token = share(shared, job)["url"].rpartition("/")[2]
    assert re.fullmatch(r"[A-Za-z0-9_-]{22}", token)
    for file in shared.service.state.glob("queue.db*"):
        assert token.encode() not in file.read_bytes()
    assert token not in shared.service.log.read_text()
    listed = shared.http.get(f"/v1/jobs/{job}/shares").json()["shares"]
    assert {one["url"] for one in listed} == {None}


def test_uses_are_counted(shared: Box) -> None:
    job = shared.run("true")["job_id"]
    made = share(shared, job)
    token = made["url"].rpartition("/")[2]
    for url in (made["url"], made["url"] + "?format=html", f"{made['url']}/files/output.json"):
        assert httpx.get(url, timeout=DEADLINE_S).status_code == 200
    httpx.head(made["url"], timeout=DEADLINE_S)
    httpx.get(made["url"], headers={"range": "bytes=100-"}, timeout=DEADLINE_S)
    httpx.get(f"{made['url']}/files/none", timeout=DEADLINE_S)

    def used() -> Json | None:
        [shown] = shared.http.get(f"/v1/jobs/{job}/shares").json()["shares"]
        return shown if shown["uses"] == 3 else None

    assert wait_for("three uses", used)["last_used_at"]
    assert token


def test_a_link_ends_at_its_time(shared: Box, http: httpx.Client, job: str) -> None:
    made = share(shared, job, expires="1s")
    path = made["url"].partition("/s/")[2]

    def over() -> bool:
        return http.get(f"/s/{path}").status_code == 404

    wait_for("the link is over", over)
    assert "expired" in problem(http.get(f"/s/{path}"), 404, "no-such-share")["detail"]


def test_all_links_of_a_job_can_be_revoked(shared: Box, http: httpx.Client, job: str) -> None:
    other = shared.run("true")["job_id"]
    kept = share(shared, other)["url"]
    shared.http.delete(f"/v1/jobs/{job}/shares")
    urls = [share(shared, job)["url"] for _ in range(3)]
    assert shared.http.delete(f"/v1/jobs/{job}/shares").json() == {"revoked": 3}
    assert shared.http.delete(f"/v1/jobs/{job}/shares").json() == {"revoked": 0}
    assert [httpx.get(url, timeout=DEADLINE_S).status_code for url in urls] == [404] * 3
    assert httpx.get(kept, timeout=DEADLINE_S).status_code == 200
    assert shared.http.get(f"/v1/jobs/{job}/shares").json() == {"shares": [], "next": None}


def test_a_share_does_not_outlive_the_results_and_says_so(tmp_path: Path) -> None:
    config = WITH_TCP + '[plans.free]\nretention = "2d"\n'
    with serving(tmp_path / "daemon", config) as box:
        job = box.run("true")
        short = share(box, job["job_id"], expires="1d")
        assert short["limited_by_results"] is False
        long = share(box, job["job_id"], expires="30d")
        assert long["limited_by_results"] is True
        assert seconds_between(long["created_at"], long["expires_at"]) <= 2 * 86400


def test_a_link_is_over_when_the_results_expire(tmp_path: Path) -> None:
    with serving(tmp_path / "daemon", WITH_TCP + '[plans.free]\nretention = "2s"\n') as box:
        job = box.run("true")
        made = share(box, job["job_id"])
        assert made["limited_by_results"] is True
        assert made["expires_at"] == job["expires_at"]
        url = f"http://127.0.0.1:{tcp_of(box)[1]}/s/{made['url'].rpartition('/')[2]}"
        wait_for("it is over", lambda: httpx.get(url, timeout=DEADLINE_S).status_code == 404)
        wait_for("the results are gone", lambda: box.status(job["job_id"])["results"] == "expired")
        problem(httpx.get(url, timeout=DEADLINE_S), 404, "no-such-share")
        refusal = box.http.post(f"/v1/jobs/{job['job_id']}/share", json={})
        problem(refusal, 409, "no-results")


def test_links_live_over_a_kill(tmp_path: Path) -> None:
    with serving(tmp_path / "daemon", WITH_TCP) as box:
        token = share(box, box.run("echo", "kept")["job_id"])["url"].rpartition("/")[2]
        box.service.kill()
        box.service.start()
        answer = httpx.get(
            f"http://127.0.0.1:{tcp_of(box)[1]}/s/{token}/files/result.txt", timeout=DEADLINE_S
        )
        assert answer.content == b"kept\n"


def test_a_link_begins_with_the_public_address(tmp_path: Path) -> None:
    config = WITH_TCP.replace("[server]", '[server]\npublic_url = "https://gpu.example.org/q/"')
    with serving(tmp_path / "daemon", config) as box:
        made = share(box, box.run("true")["job_id"])
        assert made["url"].startswith("https://gpu.example.org/q/s/")
        url = f"http://127.0.0.1:{tcp_of(box)[1]}/s/{made['url'].rpartition('/')[2]}"
        for headers in ({"host": "gpu.example.org"}, {"x-forwarded-for": "10.0.0.1"}):
            assert httpx.get(url, headers=headers, timeout=DEADLINE_S).status_code == 200
        page = {"host": "gpu.example.org", "sec-fetch-site": "cross-site"}
        assert httpx.get(url, headers=page, timeout=DEADLINE_S).status_code == 403
        page["sec-fetch-mode"] = "navigate"
        assert httpx.get(url, headers=page, timeout=DEADLINE_S).status_code == 200
        wrong = httpx.get(url, headers={"host": "example.org"}, timeout=DEADLINE_S)
        assert wrong.status_code == 403


def test_without_an_address_there_is_no_link(box: Box) -> None:
    job = box.run("true")["job_id"]
    refusal = problem(box.http.post(f"/v1/jobs/{job}/share", json={}), 409, "not-satisfiable")
    assert "public_url" in refusal["hint"]
    assert box.http.get("/v1/shares").json() == {"shares": [], "next": None}


# -- the page -----------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a browser makes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("href", "src"):
                self.links.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_browser_gets_a_page_that_is_safe_and_whole(
    shared: Box, http: httpx.Client, job: str
) -> None:
    url = share(shared, job)["url"]
    browser = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
    answer = httpx.get(url, headers=browser, timeout=DEADLINE_S)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script" not in policy
    assert "frame-ancestors 'none'" in policy
    page = Page(answer.text)
    assert "script" not in page.tags
    assert EVIL in page.text
    assert "<script" not in answer.text
    for name in ("result.txt", "logs/stdout.log", 'artifacts/a b%2e"<b>&.txt', "artifacts/d/e"):
        assert name in page.text
    digest = hashlib.sha256(b"hello\n").hexdigest()
    assert digest in page.text
    # Each link on it leads somewhere.
    for link in page.links:
        found = httpx.get(httpx.URL(url).join(link), timeout=DEADLINE_S)
        assert found.status_code == 200, link
        assert found.headers["cache-control"] == "private, no-store"
    # The style is the one that the policy allows.
    style = re.search(r"<style>(.*?)</style>", answer.text, re.S)
    assert style
    import base64

    allowed = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"'sha256-{allowed}'" in policy
    assert html.escape(EVIL) in answer.text


def test_a_shared_file_is_no_page_of_ours(shared: Box, job: str) -> None:
    url = share(shared, job)["url"] + "/files/artifacts/page.html"
    answer = httpx.get(url, headers={"accept": "text/html"}, timeout=DEADLINE_S)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-security-policy"] == "sandbox"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_page_of_many_files_lists_the_first(shared: Box) -> None:
    ended = shared.shell("cd $AITBC_ARTIFACTS_DIR; seq 1 1500 | xargs touch")
    url = share(shared, ended["job_id"])["url"]
    answer = httpx.get(url, params={"format": "html"}, timeout=DEADLINE_S)
    assert "1000 of 1504 files are listed" in answer.text or "1000 of 1503" in answer.text
    assert len(Page(answer.text).links) == 1001


def test_a_page_of_a_changed_package_says_so(shared: Box) -> None:
    ended = shared.run("true")
    url = share(shared, ended["job_id"])["url"]
    manifest = Path(ended["result_path"]) / "output.sha256"
    manifest.parent.chmod(0o755)
    manifest.chmod(0o644)
    manifest.write_bytes(b"nonsense")
    answer = httpx.get(url, params={"format": "html"}, timeout=DEADLINE_S)
    assert answer.status_code == 409
    assert "changed or removed" in Page(answer.text).text


def test_a_browser_is_told_that_a_link_is_over(http: httpx.Client) -> None:
    answer = http.get("/s/" + "x" * 22, headers={"accept": "text/html"})
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    page = Page(answer.text)
    assert "has expired or was revoked" in page.text
    assert page.links == []


# -- for another user ---------------------------------------------------------------------------


@only_root
def test_a_user_reads_what_is_shared_with_him_and_no_more(
    shared: Box, ada: User, bob: User
) -> None:
    where = shared.service.socket
    line = "echo for bob; echo a > $AITBC_ARTIFACTS_DIR/a"
    job = ada.ask(where, "POST", "/v1/jobs", {"command": line}).json["job_id"]
    status = shared.ended(job)
    reading = ("download", "result", "files/result.txt", "checksums")
    for path in reading:
        assert bob.ask(where, "GET", f"/v1/jobs/{job}/{path}").status == 404
    made = ada.ask(where, "POST", f"/v1/jobs/{job}/share", {"with": bob.name, "expires": "1d"})
    assert made.status == 201, made.body
    assert (made.json["url"], made.json["with"]) == (None, bob.name)
    for ref in (job, str(status["number"]), job.removeprefix("job_")):
        for path in reading:
            assert bob.ask(where, "GET", f"/v1/jobs/{ref}/{path}").status == 200, (ref, path)
    assert bob.ask(where, "POST", f"/v1/jobs/{job}/verify").json["ok"] is True
    assert bob.ask(where, "GET", f"/v1/jobs/{job}").json["job_id"] == job
    for method, path in (
        ("GET", f"/v1/jobs/{job}?detail=true"), ("GET", f"/v1/jobs/{job}/logs/stdout"),
        ("GET", f"/v1/jobs/{job}/events"), ("POST", f"/v1/jobs/{job}/cancel"),
        ("POST", f"/v1/jobs/{job}/share"), ("GET", f"/v1/jobs/{job}/shares"),
        ("DELETE", f"/v1/jobs/{job}/shares"), ("DELETE", f"/v1/jobs/{job}"),
        ("GET", f"/v1/jobs/{job[:-1]}/download"),
    ):  # fmt: skip
        assert bob.ask(where, method, path).status in (404, 405), (method, path)
    assert bob.ask(where, "GET", "/v1/jobs").json["jobs"] == []
    [shown] = ada.ask(where, "GET", "/v1/shares").json["shares"]
    assert shown["uses"] >= 10
    assert bob.ask(where, "GET", "/v1/shares").json["shares"] == []
    assert ada.ask(where, "DELETE", f"/v1/jobs/{job}/shares").json == {"revoked": 1}
    assert bob.ask(where, "GET", f"/v1/jobs/{job}/download").status == 404


@only_root
def test_only_owner_and_root_share(shared: Box, ada: User, bob: User) -> None:
    where = shared.service.socket
    job = ada.ask(where, "POST", "/v1/jobs", {"argv": ["true"]}).json["job_id"]
    shared.ended(job)
    assert bob.ask(where, "POST", f"/v1/jobs/{job}/share").status == 404
    assert share(shared, job)["job_id"] == job
    assert ada.ask(where, "POST", f"/v1/jobs/{job}/share").status == 201


@only_root
@pytest.mark.parametrize("name", ["nobody-has-this-name", "daemon", "a\x00b", "x" * 300, ""])
def test_a_reader_has_to_be_somebody(shared: Box, job: str, name: str) -> None:
    answer = shared.http.post(f"/v1/jobs/{job}/share", json={"with": name})
    assert answer.status_code in (409, 422)
    assert answer.json()["detail"]


# -- bad wishes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"expires": "soon"}, 422), ({"expires": "-1d"}, 422), ({"expires": 0}, 422),
        ({"expires": "0s"}, 409), ({"more": 1}, 422), ({"expires": "900y"}, 422), ([], 400),
        ("x", 400),
    ],
)  # fmt: skip
def test_bad_wishes_make_no_share(shared: Box, body: object, status: int) -> None:
    job = shared.run("true")["job_id"]
    answer = shared.http.post(f"/v1/jobs/{job}/share", content=json.dumps(body))
    assert answer.status_code == status, answer.text
    assert shared.http.get(f"/v1/jobs/{job}/shares").json()["shares"] == []


def test_what_has_no_results_cannot_be_shared(shared: Box) -> None:
    running = shared.submit("sleep", "1000")["job_id"]
    refusal = problem(shared.http.post(f"/v1/jobs/{running}/share"), 409, "no-results")
    assert refusal["state"] in ("pending", "assigned", "running")
    shared.http.post(f"/v1/jobs/{running}/cancel", json={"force": True})
    problem(shared.http.post("/v1/jobs/job_zzzzzzzz/share"), 404, "no-such-job")


def test_shares_come_in_pages(shared: Box, job: str) -> None:
    shared.http.delete(f"/v1/jobs/{job}/shares")
    made = [share(shared, job)["id"] for _ in range(7)]
    for path in (f"/v1/jobs/{job}/shares", "/v1/shares"):
        found: list[str] = []
        after: str | None = ""
        while after is not None:
            params = {"limit": 3} | ({"after": after} if after else {})
            page = shared.http.get(path, params=params).json()
            found += [one["id"] for one in page["shares"]]
            after = page["next"]
        assert found[:7] == made[::-1]
        assert len(set(found)) == len(found)
    answer = shared.http.get("/v1/shares", params={"after": "x"})
    problem(answer, 422, "invalid-value")
