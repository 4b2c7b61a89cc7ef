"""What a browser shows of a shared link: the files, their sizes and checksums. No script.

Everything on it that a job or a user named is escaped, and what it may load is nothing.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from aitbcd import manifest, wire
from aitbcd.api.context import Api
from aitbcd.errors import AitbcError, NoResults
from aitbcd.model import Job, JobState, Share
from aitbcd.results import beneath, listing
from aitbcd.results.listing import StoredFile
from aitbcd.results.package import Package
from aitbcd.units import format_size

#: Files that are listed; the zip has all.
_LISTED_MAX = 1000

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
  color: #1b1b1b; background: #fff; }
h1 { font-size: 1.4rem; margin: 0; overflow-wrap: anywhere; }
p { margin: .3rem 0 1rem; color: #555; }
.all { display: inline-block; padding: .5rem 1rem; border-radius: .4rem; background: #0b57d0;
  color: #fff; text-decoration: none; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: left; padding: .35rem .6rem .35rem 0; border-bottom: 1px solid #ddd;
  vertical-align: top; }
td { overflow-wrap: anywhere; }
.size { text-align: right; white-space: nowrap; }
.sum { font: 12px/1.7 ui-monospace, monospace; color: #555; }
@media (prefers-color-scheme: dark) { body { color: #e3e3e3; background: #1b1b1b; }
  p, .sum { color: #aaa; } th, td { border-color: #444; } a { color: #8ab4f8; } }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)
_HEADERS = {"content-security-policy": _POLICY, "x-content-type-options": "nosniff"}


async def show(api: Api, request: Request, job: Job, share: Share) -> Response:
    """Return the page of a link."""

    def read() -> tuple[list[StoredFile], int]:
        with Package(api.paths.package(job.job_id)) as package:
            return _files(package)

    try:
        async with api.looking_through[job.owner.uid]:
            files, total = await api.in_thread(read)
    except (beneath.NotThere, PermissionError, manifest.BadManifest):
        raise NoResults(
            f"the results of job {job.job_id} cannot be listed: they were changed or removed"
        ) from None
    page = _page(job, share, files, total, request.path_params["token"])
    return HTMLResponse(page, headers=_HEADERS)


def refuse(error: AitbcError) -> Response:
    """Return why there is nothing, for people."""
    hint = f"<p>{escape(error.hint)}</p>" if error.hint else ""
    body = f"<h1>{escape(error.title)}</h1>\n<p>{escape(error.detail)}</p>\n{hint}"
    return HTMLResponse(_document(error.title, body), error.status, _HEADERS)


def _files(package: Package) -> tuple[list[StoredFile], int]:
    """Return the first files of the manifest, and how many there are."""
    with package.open(manifest.FILE_NAME.encode()) as stated:
        if stated.size > listing.BYTES_MAX:
            return [], -1
        text = stated.pread(listing.BYTES_MAX, 0)
    digests = manifest.parse(text)
    return listing.sized(package, digests, _LISTED_MAX), len(digests)


def _page(job: Job, share: Share, files: list[StoredFile], total: int, token: str) -> str:
    size = format_size(job.ending.result_bytes) if job.ending else ""
    name = f" &ldquo;{escape(job.name)}&rdquo;" if job.name else ""
    title = f"{escape(job.job_id)}{name}"
    rows = "\n".join(_row(file, token) for file in files)
    more = ""
    if total != len(files):
        count = "many" if total < 0 else str(total)
        more = f"<p>{len(files)} of {count} files are listed; the zip has all.</p>"
    body = f"""<h1>Results of {title}</h1>
<p>Shared by {escape(job.owner.name)} until {_moment(share.expires_at)}.
{_outcome(job)}</p>
<a class="all" href="?format=zip">Download all as a zip ({size})</a>
<table>
<thead><tr><th>File</th><th class="size">Size</th><th>SHA-256</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
{more}
<p>To verify a download, run <code>sha256sum -c output.sha256</code> in its folder.</p>"""
    return _document(f"Results of {title}", body)


def _document(title: str, body: str) -> str:
    """Return a whole page; both are HTML already."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _row(file: StoredFile, token: str) -> str:
    path, bytes_of, digest = file
    shown = escape(path.decode(errors="backslashreplace"))
    size = "" if bytes_of is None else format_size(bytes_of)
    # Relative to the page itself, wherever a proxy has put it.
    link = escape(f"{token}/files/{quote(path)}")
    return (
        f'<tr><td><a href="{link}">{shown}</a></td><td class="size">{size}</td>'
        f'<td class="sum">{escape(digest)}</td></tr>'
    )


def _outcome(job: Job) -> str:
    if job.ending is None:
        return ""
    verb = "was canceled" if job.status is JobState.CANCELED else job.status.value
    return f"The job {verb} on {_moment(job.ending.finished_at)}."


def _moment(at: int) -> str:
    shown = wire.rfc3339(at) or ""
    return f"{shown[:10]} {shown[11:16]} UTC"
