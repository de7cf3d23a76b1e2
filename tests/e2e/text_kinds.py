"""Small stand-ins for eight kinds of collections: templates and word lists, by a seeded generator.

Each kind has documents of its own and the files in which such text usually comes.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

import pyarrow
import zstandard
from pyarrow import parquet

_CHINESE = """
我们 他们 老师 学生 城市 经济 发展 问题 时间 工作 世界 国家 历史 文化 科学
技术 研究 大学 今天 昨天 明年 北京 上海 长江 黄河 山水 朋友 音乐 电影 小说
作者 读者 认为 发现 需要 可以 已经 开始 继续 提高 减少 支持 反对 讨论 解决
重要 新的 古老 美丽 巨大 非常 也许 因为 所以 但是 如果 虽然 而且 关于 通过
农村 工厂 铁路 飞机 天气 春天 雨水 树木 动物 健康 医生 法律 政府 社会 市场
"""
_HINDI = """
भारत नदी पहाड़ शहर गाँव लोग बच्चे किताब पानी समय काम दिन रात सरकार देश भाषा हिन्दी इतिहास
विज्ञान शिक्षा विद्यालय संगीत कहानी लेखक राजा मंदिर बाज़ार किसान खेत वर्षा सूर्य चन्द्रमा
प्रकाश जीवन मृत्यु प्रेम युद्ध शान्ति स्वतंत्रता बड़ा छोटा सुन्दर पुराना नया अच्छा बहुत
थोड़ा हमेशा कभी यहाँ वहाँ और लेकिन क्योंकि यदि तथा में से को का की के पर करता जाता देखा सुना
लिखा पढ़ा बोला आया गया रहा है था होगा ज्ञान क्षेत्र श्रम १९४७ २०२६ ३५
"""
_ARABIC = """
المدينة الكتاب العلم الناس الماء الحياة التاريخ اللغة العربية الشمس القمر الليل النهار البحر
الجبل الصحراء المدرسة الطالب الأستاذ الحكومة الاقتصاد الثقافة الموسيقى القصة الكاتب الملك
المسجد السوق الفلاح المطر السلام الحرب الحرية كبير صغير جميل قديم جديد كثير قليل دائما
أحيانا هنا هناك ثم لكن لأن إذا في من إلى على عن مع بعد قبل حول عند قال ذهب رأى سمع كتب قرأ
جاء كان يكون سوف لم قُرْآنٌ مُحَمَّدٌ ١٩٨٤ ٢٠٢٦
"""
_ENGLISH = """
the a of to and in for with on is was are not this that which from when then after before
driver kernel memory server update version reboot screen cable network battery folder window
error fix tried works broken slow fast again maybe please thanks question answer simple
river valley empire century battle treaty painter novel species island mountain railway
parliament election theorem protein galaxy harbour village bridge castle engine orchestra
measure light energy water stone copper silver market garden winter summer forest lake north
south east west small large ancient modern famous local national early late first second
third known called built founded wrote moved
"""
_FACES = "😀 👍🏽 :-) ¯\\_(ツ)_/¯ 👨‍👩‍👧 lol <3"
_LICENCE = (
    "# Permission to use, copy and modify this file is granted to everyone, without warranty.\n"
)


def _some(random: Random, words: str, least: int, most: int) -> list[str]:
    return random.choices(words.split(), k=random.randint(least, most))


def _one(random: Random, words: str) -> str:
    return random.choice(words.split())


def _chinese(random: Random) -> str:
    """Return sentences of which each has a character of its own, from 300, rare ones among them."""
    sentences = []
    for _ in range(random.randint(8, 20)):
        rare = chr(0x4E00 + 7 * int(300 * random.random() ** 3))
        parts = ["".join(_some(random, _CHINESE, 3, 6)) for _ in range(random.randint(1, 3))]
        sentences.append("\uff0c".join(parts) + rare)
    return "。".join(sentences) + "。\n"


def _hindi(random: Random) -> str:
    return "".join(
        " ".join(_some(random, _HINDI, 5, 12)) + "।\n" for _ in range(random.randint(6, 14))
    )


def _arabic(random: Random) -> str:
    return "".join(
        "، ".join(" ".join(_some(random, _ARABIC, 3, 7)) for _ in range(3)) + "؟\n"
        for _ in range(random.randint(5, 10))
    )


def _chat(random: Random) -> str:
    lines = []
    for minute in range(random.randint(2, 14)):
        name = random.choice(["ana", "bob_42", "Ωmega", "李"])
        said = " ".join([*_some(random, _ENGLISH, 1, 12), *_some(random, _FACES, 0, 1)])
        lines.append(f"[{random.randint(0, 23):02d}:{minute:02d}] <{name}> {said}")
    return "\n".join(lines)


def _server_log(random: Random) -> str:
    lines = []
    for second in range(random.randint(10, 20)):
        address = ".".join(str(random.randint(1, 254)) for _ in range(4))
        path = "/".join(_some(random, _ENGLISH, 1, 4))
        lines.append(
            f"{address} - - [28/Nov/2026:{random.randint(0, 23):02d}:{random.randint(0, 59):02d}:"
            f'{second:02d} +0000] "GET /{path}?id={random.getrandbits(40):x} HTTP/1.1" '
            f"{random.choice([200, 200, 200, 304, 404, 500])} {random.randint(0, 99999)}\r\n"
        )
    return "".join(lines)


def _wiki(random: Random) -> str:
    title = " ".join(_some(random, _ENGLISH, 2, 3)).title()
    box = f"{{{{Infobox place\n| name = {title}\n| population = {random.randint(10, 9**9)}\n}}}}"
    parts = [box, f"'''{title}''' is a [[{_one(random, _ENGLISH)}]]."]
    for _ in range(random.randint(2, 5)):
        heading = _one(random, _ENGLISH).title()
        text = " ".join(_some(random, _ENGLISH, 10, 30))
        parts.append(f"== {heading} ==\n* {text}<ref>{{{{cite|{title}}}}}</ref>")
    parts.append('{| class="wikitable"\n! a !! b\n|-\n| &nbsp; || \u22121\u202f°C\n|}\n')
    return "\n".join(parts)


def _code(random: Random) -> str:
    parts = [_LICENCE + f"import {_one(random, _ENGLISH)}\n"]
    for _ in range(random.randint(3, 7)):
        name, one, two = ("_".join(_some(random, _ENGLISH, 2, 3)) for _ in range(3))
        comment = " ".join(_some(random, _ENGLISH, 5, 12))
        key, note = _one(random, _ENGLISH), _one(random, _ENGLISH)
        parts.append(
            f"\n\ndef {name}({one}: int, {two}=None):\n"
            f'    """{comment}."""\n'
            f"\tfor i in range({random.randint(1, 10**6)}):\n"
            f"        {one} += {two}[i] ** {random.random():.6f}  # {note}\n"
            f"    return {{'{key}': {one}, \"\\n\": {random.getrandbits(32):#x}}}\n"
        )
    return "".join(parts)


def _mixed(random: Random) -> str:
    return random.choice([_chinese, _hindi, _arabic, _chat, _server_log, _wiki, _code])(random)


def _write_parquet(folder: Path, texts: list[str]) -> str:
    table = pyarrow.table({"id": list(range(len(texts))), "text": texts})
    parquet.write_table(table, folder / "part-0.parquet")
    return str(folder)


def _write_xz(folder: Path, texts: list[str]) -> str:
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    (folder / "all.jsonl.xz").write_bytes(lzma.compress(lines.encode()))
    return str(folder / "all.jsonl.xz")


def _write_utf16(folder: Path, texts: list[str]) -> str:
    return _write_files(folder, texts, "txt", "utf-16")


def _write_jsonl(folder: Path, texts: list[str]) -> str:
    lines = [json.dumps({"role": "log", "content": text}) + "\n" for text in texts]
    (folder / "chat.jsonl").write_text("".join(lines))
    return str(folder / "*.jsonl")


def _write_files(folder: Path, texts: list[str], ending: str, encoding: str = "utf-8") -> str:
    for number, text in enumerate(texts):
        path = folder / f"{number % 3}" / f"{number:03d}.{ending}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode(encoding))
    return str(folder)


def _write_logs(folder: Path, texts: list[str]) -> str:
    return _write_files(folder, texts, "log") + "/*/*.log"


def _write_wiki(folder: Path, texts: list[str]) -> str:
    return _write_files(folder, texts, "md")


def _write_code(folder: Path, texts: list[str]) -> str:
    return _write_files(folder, texts, "py") + "/**/*.py"


def _write_zst(folder: Path, texts: list[str]) -> str:
    lines = []
    for number, text in enumerate(texts):
        key = "content" if number % 2 else "text"
        row = {"meta": {"text": "not this"}, key: text, "n": None}
        lines.append(json.dumps(row, ensure_ascii=number % 3 == 0) + "\n")
    content = "".join(lines).encode()
    (folder / "mixed.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(content))
    return str(folder / "mixed.jsonl.zst")


class Kind(NamedTuple):
    """A kind of collection."""

    document: Callable[[Random], str]
    """Return a new document."""
    write: Callable[[Path, list[str]], str]
    """Write documents into an empty folder; return what `data build` is given."""
    num_documents: int
    vocab_size: int = 400
    """Hardly more than bytes and characters, for texts of many tokens."""


KINDS = {
    "Chinese": Kind(_chinese, _write_parquet, 150, vocab_size=768),
    "Hindi": Kind(_hindi, _write_xz, 80),
    "Arabic": Kind(_arabic, _write_utf16, 80),
    "chat": Kind(_chat, _write_jsonl, 300),
    "server log": Kind(_server_log, _write_logs, 70),
    "wiki": Kind(_wiki, _write_wiki, 120),
    "code": Kind(_code, _write_code, 80),
    "mixed": Kind(_mixed, _write_zst, 100, vocab_size=768),
}


def documents(kind: str, count: int, seed: int) -> list[str]:
    """Return documents of a kind; equal arguments give equal documents."""
    random = Random(f"{kind} {seed}")
    return [KINDS[kind].document(random) for _ in range(count)]
