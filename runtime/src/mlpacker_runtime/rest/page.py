"""The page at /docs: what the pipeline takes and gives, its sample, a button to try it, lines for curl. One self-contained file."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import escape
from typing import Any

from ..signature import Field
from . import Served, openapi
from .answers import dumps

SHOWN_FIELDS = 200
SHOWN_VALUES = 8


def write(served: Served, description: dict[str, Any]) -> bytes:
    """The whole page. All text of the package is escaped; the page loads nothing and may run its own script only."""
    manifest = served.manifest
    said = str(manifest.metadata.get("description", "")).strip()
    digest = served.digest or "a draft, not packed"
    stages = "".join(
        f"<li><b>{escape(s.name)}</b><span>{escape(_kind(s.format))}</span></li>" for s in manifest.stages
    )
    parts = {
        "title": escape(served.name),
        "version": escape(served.version),
        "digest": escape(digest),
        "said": f"<p class=lead>{escape(said)}</p>" if said else "",
        "stages": stages,
        "inputs": _table(served.inputs),
        "outputs": _table(served.outputs),
        "rows": escape(_pretty(openapi.example_rows(served))),
        "infer": escape(dumps(openapi.example_infer(served)).decode()),
        "infer_path": escape(f"/v2/models/{served.name}/infer"),
        "routes": _routes(description),
        "hidden": "" if "security" in description else " hidden",
        "style": STYLE,
        "script": SCRIPT,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], PAGE).encode()


def _kind(name: str) -> str:
    return {
        "sklearn": "scikit-learn",
        "onnx": "ONNX",
        "xgboost": "XGBoost",
        "lightgbm": "LightGBM",
        "catboost": "CatBoost",
        "mlflow": "MLflow",
    }.get(name, name)


def _pretty(rows: list[dict[str, Any]]) -> str:
    lines = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in rows)
    return f"[\n  {lines}\n]"


def _table(fields: tuple[Field, ...]) -> str:
    rows = "".join(_line(f) for f in fields[:SHOWN_FIELDS])
    more = (
        f"<tr><td colspan=3>… and {len(fields) - SHOWN_FIELDS} more</td></tr>"
        if len(fields) > SHOWN_FIELDS
        else ""
    )
    return f"<table><thead><tr><th>Name</th><th>Type</th><th></th></tr></thead><tbody>{rows}{more}</tbody></table>"


def _line(field: Field) -> str:
    kind = (
        field.dtype
        if field.scalar
        else f"{field.dtype} [{' × '.join('n' if n < 0 else str(n) for n in field.shape[1:])}]"
    )
    notes = [] if field.required else ["optional"]
    notes += ["may be null"] if field.nullable else []
    if field.categories:
        labels = ", ".join(str(c) for c in field.categories[:SHOWN_VALUES])
        notes.append(labels + (" …" if len(field.categories) > SHOWN_VALUES else ""))
    return f"<tr><td><code>{escape(field.name)}</code></td><td>{escape(kind)}</td><td class=dim>{escape(' · '.join(notes))}</td></tr>"


def _routes(description: dict[str, Any]) -> str:
    lines = []
    for path, verbs in description["paths"].items():
        for verb, route in verbs.items():
            lines.append(
                f'<li><span class="verb {verb}">{verb.upper()}</span><code>{escape(path)}</code><span class=dim>{escape(route["summary"])}</span></li>'
            )
    return "".join(lines)


STYLE = """
:root{--ink:#1d2433;--dim:#667085;--line:#e4e7ec;--paper:#fff;--back:#f6f7f9;--accent:#3538cd;--good:#067647;--bad:#b42318;--code:#f2f4f7}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ef;--dim:#98a2b3;--line:#2b3240;--paper:#171c26;--back:#0f131a;--accent:#8098f9;--good:#47cd89;--bad:#f97066;--code:#1f2633}}
*{box-sizing:border-box}body{margin:0;background:var(--back);color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:980px;margin:0 auto;padding:40px 24px 80px}header{margin-bottom:28px}h1{font-size:30px;line-height:1.2;margin:0 0 6px;letter-spacing:-.02em}
h2{font-size:17px;margin:0 0 14px}.lead{font-size:17px;margin:14px 0 0;max-width:70ch}.dim{color:var(--dim)}
.tag{font-size:13px;padding:2px 10px;border:1px solid var(--line);border-radius:99px;color:var(--dim);vertical-align:6px;margin-left:8px;background:var(--paper)}
.digest{font:12.5px ui-monospace,Menlo,Consolas,monospace;color:var(--dim);overflow-wrap:anywhere}
section{background:var(--paper);border:1px solid var(--line);border-radius:14px;padding:22px 24px;margin:18px 0}
.two{display:grid;grid-template-columns:1fr 1fr;gap:18px}.two section{margin:0}@media(max-width:760px){.two{grid-template-columns:1fr}}
table{width:100%;border-collapse:collapse;font-size:14px}th{text-align:left;font-weight:600;color:var(--dim);font-size:12.5px}th,td{padding:6px 10px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}
tr:last-child td{border-bottom:0}.scroll{max-height:340px;overflow:auto}
code,pre,textarea{font:13px/1.5 ui-monospace,Menlo,Consolas,monospace}code{background:var(--code);padding:1px 6px;border-radius:6px;overflow-wrap:anywhere}
textarea{width:100%;min-height:170px;border:1px solid var(--line);border-radius:10px;padding:12px;background:var(--code);color:var(--ink);resize:vertical}
pre{margin:0;background:var(--code);border-radius:10px;padding:12px;overflow:auto;white-space:pre-wrap;overflow-wrap:anywhere;max-height:420px}
textarea:focus,button:focus-visible,input:focus{outline:2px solid var(--accent);outline-offset:1px}
.bar{display:flex;gap:12px;align-items:center;margin:12px 0;flex-wrap:wrap}button{font:600 14px system-ui,sans-serif;border:0;border-radius:9px;padding:9px 18px;background:var(--accent);color:#fff;cursor:pointer}
@media (prefers-color-scheme:dark){button{color:#0f131a}}button.plain{background:transparent;color:var(--accent);padding:4px 8px}button:disabled{opacity:.6}
input[type=password]{border:1px solid var(--line);border-radius:9px;padding:8px 12px;background:var(--code);color:var(--ink);font:14px system-ui}
.ok{color:var(--good)}.bad{color:var(--bad)}ol.stages{display:flex;flex-wrap:wrap;gap:8px;list-style:none;margin:16px 0 0;padding:0}
ol.stages li{border:1px solid var(--line);border-radius:10px;padding:5px 12px;background:var(--paper);font-size:14px}ol.stages li span{color:var(--dim);margin-left:8px}ol.stages li+li::before{content:"→";color:var(--dim);margin-right:10px}
ul.routes{list-style:none;margin:0;padding:0}ul.routes li{display:flex;gap:12px;align-items:baseline;padding:5px 0;flex-wrap:wrap}.verb{font:700 11.5px ui-monospace,monospace;width:44px}.verb.post{color:var(--accent)}.verb.get{color:var(--good)}
.curl{position:relative;margin-top:12px}.curl pre{padding-right:72px}.curl button{position:absolute;right:6px;top:6px}
"""

SCRIPT = """
const q=s=>document.querySelector(s),base=location.origin;
const quoted=t=>"'"+t.replace(/'/g,"'\\\\''")+"'";
function key(){const k=q('#key').value.trim();return k?{'X-API-Key':k}:{}}
function show(){const b=q('#rows').value.replace(/\\s*\\n\\s*/g,' ').trim(),k=q('#key').value.trim()?" -H 'X-API-Key: '$KEY":'';
q('#curl').textContent='curl '+base+'/predict'+k+' -d '+quoted(b);q('#curl2').textContent='curl '+base+q('#curl2').dataset.path+k+' -d '+quoted(q('#curl2').dataset.body)}
async function go(){const s=q('#said'),out=q('#out');q('#try').disabled=true;s.textContent='…';s.className='dim';const t=performance.now();
try{const r=await fetch('/predict',{method:'POST',headers:{'Content-Type':'application/json',...key()},body:q('#rows').value});const ms=(performance.now()-t).toFixed(1);
const text=await r.text();s.textContent=r.status+' in '+ms+' ms';s.className=r.ok?'ok':'bad';try{const v=JSON.parse(text);out.textContent=Array.isArray(v)?'[\\n'+v.map(x=>'  '+JSON.stringify(x)).join(',\\n')+'\\n]':JSON.stringify(v,null,1)}catch(e){out.textContent=text}}
catch(e){s.textContent='no answer: '+e.message;s.className='bad'}out.hidden=false;q('#try').disabled=false}
q('#try').addEventListener('click',go);q('#rows').addEventListener('input',show);q('#key').addEventListener('input',show);
document.addEventListener('keydown',e=>{if((e.ctrlKey||e.metaKey)&&e.key==='Enter')go()});
document.querySelectorAll('[data-copy]').forEach(b=>b.addEventListener('click',async()=>{await navigator.clipboard.writeText(q(b.dataset.copy).textContent);b.textContent='copied';setTimeout(()=>b.textContent='copy',1200)}));show();if(location.hash==='#go')go();
"""

PAGE = """<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width,initial-scale=1">
<title>{{title}} · MLPacker</title><link rel=icon href="data:,"><style>{{style}}</style></head><body><main>
<header><h1>{{title}}<span class=tag>version {{version}}</span></h1><div class=digest>{{digest}}</div>{{said}}<ol class=stages>{{stages}}</ol></header>
<section><h2><label for=rows>Try it</label></h2><textarea id=rows spellcheck=false>{{rows}}</textarea>
<div class=bar><button id=try>Predict</button><input id=key type=password placeholder="API key" autocomplete=off aria-label="API key"{{hidden}}><span id=said class=dim role=status>Ctrl + Enter</span></div>
<pre id=out hidden aria-label="Answer"></pre></section>
<div class=two><section><h2>What goes in</h2><div class=scroll>{{inputs}}</div></section><section><h2>What comes out</h2><div class=scroll>{{outputs}}</div></section></div>
<section><h2>From a terminal</h2><div class=curl><pre id=curl></pre><button class=plain data-copy="#curl">copy</button></div>
<div class=curl><pre id=curl2 data-path="{{infer_path}}" data-body="{{infer}}"></pre><button class=plain data-copy="#curl2">copy</button></div></section>
<section><h2>Everything there is</h2><ul class=routes>{{routes}}</ul><p class=dim>The same for machines: <a href="/openapi.json">openapi.json</a></p></section>
</main><script>{{script}}</script></body></html>
"""


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


HEADERS = (
    (
        "Content-Security-Policy",
        f"default-src 'none'; connect-src 'self'; img-src data:; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
)
"""The page runs its own script and style and nothing else, whatever a package's texts hold."""
