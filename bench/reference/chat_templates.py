#!/usr/bin/env python3
"""What transformers makes of chat templates, for the tests of the server.

    pip install transformers==5.24.0 jinja2==3.1.6
    python3 chat_templates.py > ../../crates/server/tests/data/templates.json

Every entry is a template, what it sees, and the text that transformers' own renderer makes of it,
or null where it refuses. The clock stands at 2024-07-26 09:05:03.
"""

import datetime
import json
import sys

import jinja2
import transformers
from transformers.utils import chat_template_utils

NOW = datetime.datetime(2024, 7, 26, 9, 5, 3)


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


chat_template_utils.datetime = Clock

MESSAGES = [
    {"role": "system", "content": "You are  brief.\n"},
    {"role": "user", "content": "  Hi <b>&\"q\"</b> it's caf\u00e9 \U0001F600\tok  "},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "And\r\nnow?"},
]
MORE = {
    "n": 7, "zero": 0, "neg": -3, "big": 12345678901234, "half": 0.5, "whole": 2.0, "tiny": 1e-7, "huge": 1e22,
    "yes": True, "no": False, "nil": None, "word": "Hello World", "empty": "",
    "list": [3, 1, 2], "words": ["b", "a", "C"], "mixed": [1, "a'b", None, True, 2.5, ["x", {"k": "v"}]],
    "map": {"b": 1, "a": [1, 2], "c": {"d": None}}, "rows": [{"k": "x", "v": 2}, {"k": "y", "v": 1}, {"k": "x", "v": 0}],
    "quote": "it's", "both": "it's \"q\"", "lines": "one\n two\n\nthree", "uni": "\u00c9t\u00e9 \u4f60\u597d \u00df",
}

CASES = []


def add(*templates):
    CASES.extend(templates)


# Ends of lines and of the template.
add("a", "a\n", "a\n\n", "a\r\n", "a\r\nb", "\na", "{{ word }}\n", "{% if true %}\nx\n{% endif %}\n",
    "{% if true %}\r\nx\r\n{% endif %}\r\ny", "  {% if true %}\n  x\n  {% endif %}\n", "a\n{%- if true %} b {%- endif -%}\n c",
    "{{- word -}} \n x", "{# comment #}\nx", "  {# comment #}\n  x", "x {#- c -#} y", "{% raw %}{{ x }}{% endraw %}",
    "{% raw %}\n{{ x }}\n{% endraw %}\n", "a{{ '\\n' }}b", "a\\nb", "{{ 'a\\tb' }}", "{{ \"it's\" }}", "{{ 'x\\u00e9' }}",
    "{% set x = 1 %}\n{{ x }}", "{%+ if true %}x{% endif %}", "   {%+ if true %}x{% endif %}", "{% if true +%}\nx{% endif %}",
    "x\n   {%- if true -%}   \n y {% endif %}", "a\n\n\n{% if true %}\n\nb{% endif %}", "\t{% if true %}\nx{% endif %}")
# Printing of values.
for name in list(MORE) + ["missing", "messages"]:
    add("{{ %s }}" % name)
for name in ["n", "half", "whole", "tiny", "huge", "yes", "nil", "word", "list", "mixed", "map", "both", "quote", "uni"]:
    add("{{ '[' ~ %s ~ ']' }}" % name, "{{ %s | string }}" % name, "{{ %s | tojson }}" % name)
add("{{ [] }}", "{{ {} }}", "{{ () }}", "{{ (1,) }}", "{{ (1, 'a') }}", "{{ [none, true, false] }}", "{{ [[1], {'a': 'b'}] }}",
    "{{ ['\\n', '\\\\', \"it's\"] }}", "{{ {'a': 1.0, 2: 'x'} }}", "{{ range(3) | list }}", "{{ 'a' in 'abc' }}",
    "{{ 1 / 2 }}", "{{ 4 / 2 }}", "{{ 7 // 2 }}", "{{ -7 // 2 }}", "{{ 7 % 3 }}", "{{ -7 % 3 }}", "{{ 2 ** 10 }}", "{{ 2 ** -1 }}",
    "{{ 1e3 }}", "{{ 1.10 }}", "{{ 1_000 }}", "{{ 0.1 + 0.2 }}", "{{ 'ab' * 3 }}", "{{ [1] * 2 }}", "{{ [1] + [2] }}",
    "{{ 'a' + 'b' }}", "{{ 'a' ~ 1 ~ none }}", "{{ 1 == 1.0 }}", "{{ 'a' < 'b' }}", "{{ 1 < 2 < 3 }}", "{{ not x }}",
    "{{ '%s-%d' % ('a', 3) }}", "{{ '%.2f' % 1.005 }}", "{{ '%05d|%-4s|' % (42, 'x') }}", "{{ 'x' if false }}|",
    "{{ 1 if nil else 2 }}", "{{ nil or 'd' }}", "{{ word and 3 }}", "{{ list[0] }}{{ list[-1] }}", "{{ word[1:4] }}",
    "{{ word[::-1] }}", "{{ list[1:] }}", "{{ list[:-1] }}", "{{ word[-3:] }}", "{{ map.a[0] }}", "{{ map['b'] }}", "{{ map.get('z', 5) }}",
    "{{ map.zz is defined }}", "{{ messages | length }}", "{{ word | length }}", "{{ 3.7 | int }}", "{{ '12' | int + 1 }}",
    "{{ 'x' | int(9) }}", "{{ '1.5' | float }}", "{{ 2.5 | round }}", "{{ 3.14159 | round(2) }}", "{{ 7 | round }}", "{{ 2.4 | round(0, 'ceil') }}",
    "{{ -5 | abs }}", "{{ [1, 2.5] | sum }}", "{{ (1 > 2) | string }}", "{{ true + 1 }}", "{{ 10 | float }}", "{{ 1e16 }}", "{{ 123456789.123 }}")
# tojson and its options.
for options in ["indent=2", "indent=4", "ensure_ascii=True", "sort_keys=True", "separators=(',', ':')", "indent=0",
                "indent=2, sort_keys=True", "ensure_ascii=False, indent=1", "separators=(', ', ' = ')", "indent=2, separators=(',', ': ')"]:
    for name in ["map", "mixed", "uni", "rows"]:
        add("{{ %s | tojson(%s) }}" % (name, options))
add("{{ messages | tojson }}", "{{ word | tojson }}", "{{ nil | tojson }}", "{{ [] | tojson(indent=2) }}", "{{ {} | tojson(indent=2) }}",
    "{{ '</script>&' | tojson }}", "{{ 1e22 | tojson }}", "{{ whole | tojson }}", "{{ '\\u007f\\u0001' | tojson }}", "{{ map | tojson(2) }}")
# The block that marks what the assistant wrote.
add("{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.role }}{% endif %}{% endfor %}",
    "a {%- generation -%} b {%- endgeneration -%} c", "{% generation %}\nx\n{% endgeneration %}\ny", "{%- generation %} x {% endgeneration -%}\n y",
    "{% set a = 1 %}{% generation %}{{ a }}{% set a = 2 %}{% endgeneration %}{{ a }}",
    "{% for m in messages %}{% generation %}{{ loop.index }}{% endgeneration %}{% endfor %}", "  {% generation %}x{% endgeneration %}  ")
# Methods of strings, lists and mappings.
for method in ["strip()", "lstrip()", "rstrip()", "upper()", "lower()", "title()", "capitalize()", "swapcase()", "casefold()", "split()", "split('l')",
               "split(' ', 1)", "rsplit(' ', 1)", "splitlines()", "strip('Hd')", "lstrip('He')", "rstrip('ld')", "startswith('He')", "endswith('ld')",
               "startswith(('x', 'He'))", "find('o')", "find('zz')", "rfind('o')", "index('W')", "count('l')", "replace('l', 'L')", "replace('l', 'L', 1)",
               "removeprefix('Hello ')", "removesuffix('World')", "zfill(15)", "center(15)", "center(15, '*')", "ljust(13)", "rjust(13)", "ljust(13, '.')",
               "partition(' ')", "rpartition('o')", "partition('zz')", "isalpha()", "isdigit()", "isupper()", "islower()", "isspace()", "isalnum()",
               "istitle()", "isnumeric()", "isdecimal()", "isascii()", "isidentifier()", "expandtabs(2)", "encode('utf-8')", "join(words)", "format(1)", "__len__()"]:
    add("{{ word.%s }}" % method)
add("{{ lines.splitlines() }}", "{{ lines.split('\\n') }}", "{{ lines.split() }}", "{{ '{}-{}'.format(1, 'a') }}", "{{ '{0}{1}{0}'.format('a', 'b') }}",
    "{{ '{a}'.format(a=3) }}", "{{ '{:>5}|{:<4}|{:^5}'.format('a', 'b', 'c') }}", "{{ '{:03d} {:.1f}'.format(7, 2.25) }}", "{{ ', '.join(words) }}",
    "{{ '-'.join(['a']) }}", "{{ uni.upper() }}", "{{ uni.lower() }}", "{{ uni.casefold() }}", "{{ uni.title() }}", "{{ 'a,b,,c'.split(',') }}",
    "{{ 'aXbXc'.rsplit('X', 1) }}", "{{ ''.split() }}", "{{ ''.split(',') }}", "{{ '  a  b '.split() }}", "{{ messages[1].content.strip() }}",
    "{{ messages[3].content.splitlines() }}", "{{ 'x'.isdigit() }}", "{{ '12'.isdigit() }}", "{{ '  '.isspace() }}", "{{ 'they\\'re'.title() }}",
    "{{ 'abc'.find('c', 1) }}", "{{ 'aaa'.count('a', 1) }}", "{{ map.keys() | list }}", "{{ map.values() | list }}", "{{ map.items() | list }}",
    "{% for k, v in map.items() %}{{ k }}={{ v }};{% endfor %}", "{{ map.get('b') }}", "{{ map.get('q') }}", "{{ list.index(1) }}", "{{ list.count(3) }}",
    "{{ map.copy() }}", "{{ list.copy() }}", "{{ list.append(4) }}", "{{ map.update({'x': 1}) }}", "{{ map.pop('b') }}", "{{ word.__class__ }}")
# Filters.
for use in ["word | upper", "word | lower", "word | title", "word | capitalize", "word | trim", "messages[1].content | trim", "word | replace('l', 'L')",
            "word | replace('l', 'L', 1)", "word | first", "word | last", "list | first", "list | last", "list | sort", "list | sort(reverse=true)", "words | sort",
            "words | sort(case_sensitive=true)", "rows | sort(attribute='v')", "list | reverse | list", "word | reverse", "list | min", "list | max", "words | join",
            "words | join(', ')", "rows | join(',', attribute='k')", "list | join('|')", "mixed | join(',')", "words | map('upper') | list", "rows | map(attribute='k') | list",
            "rows | map(attribute='q', default='-') | list", "list | select('odd') | list", "list | reject('odd') | list", "list | select('gt', 1) | list",
            "rows | selectattr('k', 'equalto', 'x') | list", "rows | rejectattr('k', 'equalto', 'x') | list", "rows | selectattr('v') | list", "rows | groupby('k') | list",
            "rows | map(attribute='k') | unique | list", "words | unique | list", "map | dictsort", "map | items | list", "map | list", "map | length", "word | list",
            "word | default('d')", "missing | default('d')", "empty | default('d')", "empty | default('d', true)", "nil | default('d')", "nil | d('x', true)",
            "lines | indent", "lines | indent(2)", "lines | indent(2, true)", "lines | indent(width=3, first=true, blank=true)", "word | indent(4)", "word | center(15)",
            "word | wordcount", "word | truncate(7)", "word | truncate(7, true)", "word | truncate(8, false, '.')", "lines | wordwrap(5)", "'<b>x</b> y' | striptags",
            "'<b>' | escape", "'<b>' | e", "'<b>' | safe", "'<b>' | forceescape", "'a b/c' | urlencode", "{'a': 'b c'} | urlencode", "list | batch(2) | list",
            "list | batch(2, 'x') | list", "list | slice(2) | list", "n | filesizeformat", "big | filesizeformat", "1000 | filesizeformat(true)", "list | sum",
            "rows | sum(attribute='v')", "map | pprint", "list | string", "word | count", "map | attr('a')", "'%s and %s' | format('a', 'b')", "{'id': 'a', 'n': none} | xmlattr",
            "word | wordcount + 1", "list | tojson | length", "5 | abs", "'abc' | map('upper') | join", "[[1, 2], [3]] | sum(start=[])", "(1, 2) | list", "words | map('length') | list",
            "rows | map(attribute='v') | map('string') | join('+')", "['a', 'b'] | last", "[] | first", "[3, 1] | min", "words | max", "words | sort | first", "{'b': 1, 'a': 2} | dictsort(by='value')",
            "[1, 2, 3, 4] | select('divisibleby', 2) | list", "['x', none, ''] | select | list", "['x', none, ''] | reject | list", "2.567 | round(1)", "'3' | int * 2", "'ff' | int(base=16)"]:
    add("{{ %s }}" % use)
# Tests.
for test in ["n is odd", "n is even", "n is divisibleby 7", "nil is none", "missing is defined", "missing is undefined", "word is string", "n is number", "n is integer",
             "half is float", "yes is boolean", "yes is true", "no is false", "map is mapping", "list is sequence", "word is sequence", "list is iterable", "word is iterable",
             "'a' is in 'abc'", "3 is in list", "n is eq 7", "n is sameas 7", "n is gt 3", "n is lessthan 8", "word is upper", "'abc' is lower", "range is callable", "n is not odd",
             "list is mapping", "'upper' is filter", "'odd' is test", "n is ne 7", "n is ge 7", "yes is number", "yes is integer"]:
    add("{{ %s }}" % test, "{%% if %s %%}y{%% else %%}n{%% endif %%}" % test)
# Statements.
add("{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.first }}{{ loop.last }};{% endfor %}", "{% for x in list %}{{ loop.index0 }}{{ loop.revindex }}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% for x in [] %}x{% else %}none{% endfor %}", "{% for x in list if x > 1 %}{{ x }}{% endfor %}", "{% for a, b in [(1, 2), (3, 4)] %}{{ a }}-{{ b }} {% endfor %}",
    "{% for x in list %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "{% for x in list %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in list %}{{ loop.previtem }},{{ loop.nextitem }};{% endfor %}", "{% for x in [1, 1, 2] %}{{ loop.changed(x) }}{% endfor %}",
    "{% set ns = namespace(a=0, b='x') %}{% for x in list %}{% set ns.a = ns.a + x %}{% endfor %}{{ ns.a }}{{ ns.b }}", "{% set x = 1 %}{% for y in list %}{% set x = y %}{% endfor %}{{ x }}",
    "{% set x %}block {{ n }}{% endset %}{{ x }}", "{% set x | upper %}block{% endset %}{{ x }}", "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a is defined }}",
    "{% macro f(x, y=2, *args) %}{{ x }}{{ y }}{{ args }}{% endmacro %}{{ f(1) }}|{{ f(1, 3, 4) }}", "{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f('a') ~ f('b') }}", "{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}in{% endcall %}",
    "{% macro f(x=none) %}{{ x is none }}{% endmacro %}{{ f() }}{{ f(x=1) }}", "{% filter upper %}abc{{ word }}{% endfilter %}", "{% if n > 5 and word %}a{% elif n %}b{% else %}c{% endif %}", "{{ raise_exception('no') }}",
    "{% if n is odd %}{{ 'odd' }}{% endif %}", "{{ dict(a=1, b='x') }}", "{{ range(2, 9, 3) | list }}", "{{ range(5, 0, -2) | list }}", "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}",
    "{% set j = joiner(', ') %}{% for x in list %}{{ j() }}{{ x }}{% endfor %}", "{% for k in map %}{{ k }}{% endfor %}", "{% for m in messages[::-1] %}{{ m.role[0] }}{% endfor %}", "{% for m in messages[1:] %}{{ m['role'] }},{% endfor %}",
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | map('trim') | join('/') }}", "{% set m = messages | last %}{{ m.content }}", "{{ messages[0]['role'] == 'system' }}", "{% if messages[0].tool_calls is defined %}x{% endif %}y",
    "{% if messages[0].tool_calls %}x{% endif %}y", "{{ missing.deeper }}", "{{ missing }}|", "{{ missing is none }}", "{{ missing == none }}", "{% if missing %}x{% else %}y{% endif %}", "{{ bos_token }}{{ eos_token }}|{{ add_generation_prompt }}", "{{ tools is none }}{{ documents is none }}",
    "{% if tools %}t{% endif %}{% if not tools %}n{% endif %}", "{{ namespace(a=1).a }}", "{% for i in range(3) %}{% for j in range(2) %}{{ loop.index }}{% endfor %}{{ loop.index }} {% endfor %}", "{% do list.append(1) %}", "{% include 'x' %}", "{% block a %}in{% endblock %}",
    "{% for item in rows recursive %}{{ item.k }}{% endfor %}", "{{ ('a' if yes else 'b') | upper }}", "{{ word|upper|lower }}", "{{- 'a' -}}{{- 'b' -}}", "{{ {'a': 1}['a'] }}", "{{ {'a': 1}.a }}", "{{ [1, 2][0] }}", "{{ 'abc'[1] }}", "{{ n.real }}", "{{ half.is_integer() }}")
# The clock.
for code in "aAbBcdeFHIjklmMnpPrRSTuUVwWxXyYzZ%CDgGhst":
    if code not in "szZ":
        add("{{ strftime_now('%%%s') }}" % code)
add("{{ strftime_now('%d %B %Y') }}", "{{ strftime_now('%-d/%-m %H:%M') }}", "{{ strftime_now('%d %b %Y') }}", "{{ strftime_now('%Y-%m-%dT%H:%M:%S') }}", "{{ strftime_now('%A, %-I %p') }}", "{{ strftime_now('caf\u00e9 %%') }}", "{{ strftime_now('%f') }}", "{{ strftime_now('') }}")


def render(source):
    try:
        compiled = chat_template_utils._compile_jinja_template(source)
        return compiled.render(messages=MESSAGES, tools=None, documents=None, add_generation_prompt=True,
                               bos_token="<s>", eos_token="</s>", **MORE)
    except (jinja2.exceptions.TemplateError, TypeError, ValueError, AttributeError, KeyError, ZeroDivisionError, OverflowError) as error:
        print(f"{source!r}: {type(error).__name__}: {error}", file=sys.stderr)
        return None


def main():
    record = {"transformers": transformers.__version__, "jinja2": jinja2.__version__, "now": int(NOW.replace(tzinfo=datetime.timezone.utc).timestamp()),
              "messages": MESSAGES, "variables": MORE}
    seen = list(dict.fromkeys(CASES))
    record["cases"] = [[source, render(source)] for source in seen]
    lines = json.dumps({key: value for key, value in record.items() if key != "cases"}, ensure_ascii=True)
    cases = ",\n".join(json.dumps(case, ensure_ascii=True) for case in record["cases"])
    print(f"{lines[:-1]}, \"cases\": [\n{cases}\n]}}")


if __name__ == "__main__":
    main()
