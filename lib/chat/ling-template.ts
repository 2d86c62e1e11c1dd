/**
 * The chat format of Ling 2.0 as a Jinja template, used when a model folder brings none: a system turn always, tools in it,
 * reasoning kept only after the last real question, consecutive tool answers in one OBSERVATION turn.
 */
export const LING_TEMPLATE = String.raw`
{%- set END = '<|role_end|>' -%}
{%- set ns = namespace(question=-1) -%}
{%- for m in messages -%}
  {%- if m.role == 'user' and not (m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>')) -%}
    {%- set ns.question = loop.index0 -%}
  {%- endif -%}
{%- endfor -%}
{%- if ns.question < 0 -%}
  {%- set ns.question = messages | length - 1 -%}
{%- endif -%}

{{- '<role>SYSTEM</role>' -}}
{%- if messages[0].role == 'system' -%}
  {{- messages[0].content + '\n' -}}
{%- endif -%}
{%- if tools -%}
  {{- '# Tools\n\nYou may call one or more functions to assist with the user query.\n\n' -}}
  {{- 'You are provided with function signatures within <tools></tools> XML tags:\n<tools>' -}}
  {%- for tool in tools -%}
    {{- '\n' + tool | tojson -}}
  {%- endfor -%}
  {{- '\n</tools>\n\nFor each function call, return a json object with function name and arguments within ' -}}
  {{- '<tool_call></tool_call> XML tags:\n<tool_call>\n' -}}
  {{- '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>\n' -}}
{%- endif -%}
{{- 'detailed thinking off' + END -}}

{%- for m in messages -%}
  {%- if m.role == 'user' -%}
    {{- '<role>HUMAN</role>' + m.content + END -}}
  {%- elif m.role == 'system' and not loop.first -%}
    {{- '<role>SYSTEM</role>' + m.content + END -}}
  {%- elif m.role == 'assistant' -%}
    {%- set content = m.content if m.content is string else '' -%}
    {%- set reasoning = '' -%}
    {%- if m.reasoning_content is string -%}
      {%- set reasoning = m.reasoning_content -%}
    {%- elif '</think>' in content -%}
      {%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') -%}
      {%- set content = content.split('</think>')[-1].lstrip('\n') -%}
    {%- endif -%}
    {{- '<role>ASSISTANT</role>' -}}
    {%- if reasoning and loop.index0 > ns.question -%}
      {{- '\n<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') -}}
    {%- else -%}
      {{- content -}}
    {%- endif -%}
    {%- for call in m.tool_calls or [] -%}
      {%- set f = call.function or call -%}
      {%- if content or not loop.first -%}
        {{- '\n' -}}
      {%- endif -%}
      {%- set arguments = f.arguments if f.arguments is string else f.arguments | tojson -%}
      {{- '<tool_call>\n{"name": "' + f.name + '", "arguments": ' + arguments + '}\n</tool_call>' -}}
    {%- endfor -%}
    {{- END -}}
  {%- elif m.role == 'tool' -%}
    {%- if loop.first or loop.previtem.role != 'tool' -%}
      {{- '<role>OBSERVATION</role>' -}}
    {%- endif -%}
    {{- '\n<tool_response>\n' + (m.content if m.content is string else '') + '\n</tool_response>' -}}
    {%- if loop.last or loop.nextitem.role != 'tool' -%}
      {{- END -}}
    {%- endif -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<role>ASSISTANT</role>' -}}
{%- endif -%}
`;
