"""What ``make gallery`` runs: every model of the recipes, rolled and unrolled, and an index that can be searched.

``python gallery/build.py [NAME ...]`` draws only these models; the index holds all that have been drawn.
"""

import argparse
import json
import os
import time
import warnings
from collections import Counter
from html import escape
from pathlib import Path

import torch
from recipes import FAMILIES

import lens

OUT = Path("out/gallery")
PAGE = Path(__file__).parent / "page.html"
#: Thumbnails are drawn this coarsely.
_THUMBNAIL = {"view": "rolled", "depth": 2, "max_nodes": 30}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="models to draw; all by default")
    wanted = parser.parse_args().names
    OUT.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    failures = []
    for family, recipes in FAMILIES.items():
        for name, make in recipes.items():
            if not wanted or name in wanted:
                card = draw(name, family, make)
                (OUT / f"{name}.json").write_text(json.dumps(card))
                failures += [name] if "error" in card else []
                print(f"{name:40} {card.get('error') or card['summary']}", flush=True)
    write_index()
    print(f"{(OUT / 'index.html').resolve()}: {len(list(OUT.glob('*.json')))} models, {len(failures)} failed")
    raise SystemExit(bool(failures))


def draw(name, family, make):
    """Trace a model, draw it, and give what its card says."""
    card = {"name": name, "family": family}
    try:
        torch.manual_seed(0)
        model, args, kwargs = make()
        with torch.no_grad():
            history = lens.trace(model.eval(), args, kwargs, save="none")
        begun = time.perf_counter()
        for view in ("unrolled", "rolled"):
            history.draw(OUT / f"{name}.{view}.svg", view=view)
        history.draw(OUT / f"{name}.thumbnail.svg", **_THUMBNAIL)
    except Exception as error:  # noqa: BLE001 - one model that fails must not stop the gallery; its card says so
        return {**card, "error": f"{type(error).__name__}: {error}"}
    seconds = time.perf_counter() - begun
    types = Counter(entry.layer_type for entry in history if entry.operation_num is not None)
    facts = [
        "recurrent" if history.model_is_recurrent else "feedforward",
        "branching" if history.model_is_branching else "",
        "conditional" if history.model_has_conditional_branching else "",
        f"{len(history.gaps)} gaps" if history.gaps else "",
    ]
    return {
        **card,
        "cls": history.model_name,
        "summary": f"{len(history.graph.ops):,} operations, {history.total_params:,} parameters",
        "facts": ", ".join(filter(None, facts)),
        "types": ", ".join(f"{kind} {count}" for kind, count in types.most_common(6)),
        "notes": list(history.drawing().notes),
        "drawn": f"drawn in {seconds:.1f} s",
    }


def write_index():
    cards = [json.loads(path.read_text()) for path in sorted(OUT.glob("*.json"))]
    sections = []
    for family in FAMILIES:
        inside = "\n".join(card_html(card) for card in cards if card["family"] == family)
        sections.append(f"<section><h2>{escape(family)}</h2>\n<div class=grid>\n{inside}\n</div></section>")
    page = PAGE.read_text(encoding="utf-8").replace("{{sections}}", "\n".join(sections))
    temporary = OUT / "index.part"
    temporary.write_text(page.replace("{{count}}", str(len(cards))), encoding="utf-8")
    os.replace(temporary, OUT / "index.html")


def card_html(card):
    name = escape(card["name"])
    words = escape(" ".join(str(value) for value in card.values()).lower(), quote=True)
    if "error" in card:
        return f'<article data-words="{words}"><h3>{name}</h3><p class=error>{escape(card["error"])}</p></article>'
    lines = [card["cls"], card["summary"], card["facts"], card["types"], *card["notes"], card["drawn"]]
    text = "".join(f"<p>{escape(line)}</p>" for line in lines if line)
    return (
        f'<article data-words="{words}"><a class=thumbnail href="{name}.rolled.svg">'
        f'<img loading=lazy src="{name}.thumbnail.svg" alt="{name}, modules only"></a><h3>{name}</h3>{text}'
        f'<p><a href="{name}.rolled.svg">rolled</a> <a href="{name}.unrolled.svg">unrolled</a></p></article>'
    )


if __name__ == "__main__":
    main()
