/**
 * What runs in a grammar thread: the xgrammar library, the vocabulary in its form, compiled grammars and the matchers that
 * walk through them. One job at a time, in the order sent; every job but `close` and `forget` is answered.
 *
 * The library ends in a WebAssembly abort whatever goes wrong, a bad schema included, and what an abort leaves behind
 * cannot be trusted: such an answer says `fatal`, and whoever started the thread ends it.
 */

import type { CompiledGrammar, GrammarCompiler, GrammarMatcher } from '@mlc-ai/web-xgrammar';

/** A checked form, as the thread compiles it. */
export type Program =
  | { kind: 'json'; schema: SchemaText }
  | { kind: 'grammar'; text: string }
  | { kind: 'regex'; pattern: string }
  | { kind: 'calls'; tools: { name: string; schema: SchemaText }[]; parallel: boolean };

/** A schema, and the ranges of numbers that its marks (schema.ts) stand for. */
export interface SchemaText {
  text: string;
  ranges: string[];
}

export type Job =
  | { op: 'compile'; key: string; program: Program }
  | { op: 'forget'; key: string }
  | { op: 'open'; matcher: number; key: string }
  /**
   * Takes back `rollback` tokens, accepts others, and answers with the mask of what may follow; and, as far as the grammar goes
   * along with `path`, with the masks behind its tokens.
   */
  | { op: 'masks'; matcher: number; rollback: number; accept: number[]; path: readonly number[] }
  | { op: 'close'; matcher: number };

export interface Reply {
  /** One after the other. */
  masks?: Int32Array;
  error?: string;
  fatal?: boolean;
}

export interface WorkerSetup {
  libraryPath: string;
  /** The bytes of all tokens in a row; token i is bytes offsets[i] to offsets[i + 1], none where it is never allowed. */
  bytes: Uint8Array;
  offsets: Uint32Array;
  vocabSize: number;
  stopIds: readonly number[];
  memoryBytes: number;
}

type Library = typeof import('@mlc-ai/web-xgrammar');
/** As much of WebAssembly as is needed here; the type library of the browser is not loaded. */
interface WasmMemory {
  buffer: ArrayBuffer;
  grow(pages: number): number;
}

/** Runs in the worker from its source text, so it may name nothing outside itself. */
export function workerMain(): void {
  const { parentPort, workerData } = require('node:worker_threads') as typeof import('node:worker_threads');
  const { readFileSync } = require('node:fs') as typeof import('node:fs');
  const vm = require('node:vm') as typeof import('node:vm');
  const setup = workerData as WorkerSetup;

  // What the library prints is the reason of its aborts, and may quote a caller's schema: it is read here and goes no further.
  let said: string[] = [];
  const listen = (...words: unknown[]) => {
    if (said.length < 100) said.push(words.map(String).join(' ').slice(0, 2000));
  };
  Object.assign(console, { log: listen, warn: listen, error: listen });

  const memory = (globalThis as unknown as { WebAssembly: { Memory: { prototype: WasmMemory } } }).WebAssembly.Memory.prototype;
  const { grow } = memory;
  memory.grow = function (this: WasmMemory, pages: number): number {
    if (this.buffer.byteLength + pages * 65_536 > setup.memoryBytes) {
      listen(`[FATAL] thread:0: it needs more than ${Math.round(setup.memoryBytes / 2 ** 20)} MiB of memory`);
      throw new RangeError('the limit on memory');
    }
    return grow.call(this, pages);
  };

  /** The package calls itself an ES module but is written for `require`. */
  function load(): Library {
    const module = { exports: {} };
    const wrapper = vm.compileFunction(
      readFileSync(setup.libraryPath, 'utf8'),
      ['exports', 'module', 'require', '__filename'],
      { filename: setup.libraryPath, importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER },
    ) as (exports: object, module: object, require: NodeJS.Require, filename: string) => void;
    wrapper(module.exports, module, require, setup.libraryPath);
    return module.exports as Library;
  }

  /** Tokens in the byte-level alphabet: printable Latin-1 for itself, the other bytes as characters from U+0100 on. */
  function spellings(): string[] {
    let next = 0x100;
    const alphabet = Array.from({ length: 256 }, (_, byte) =>
      String.fromCharCode((byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad) ? byte : next++),
    );
    return Array.from({ length: setup.offsets.length - 1 }, (_, id) => {
      let text = '';
      for (let at = setup.offsets[id] ?? 0; at < (setup.offsets[id + 1] ?? 0); at++) text += alphabet[setup.bytes[at] ?? 0];
      return text;
    });
  }

  const library = load();
  let compiler: Promise<GrammarCompiler> | undefined;
  /** Each with matchers that were closed, for the next sequences: making one leaves a little memory behind. */
  const grammars = new Map<string, { compiled: CompiledGrammar; unused: GrammarMatcher[] }>();
  const matchers = new Map<number, { walk: GrammarMatcher; key: string; broken?: string }>();

  async function makeCompiler(): Promise<GrammarCompiler> {
    const { vocabSize, stopIds } = setup;
    const info = await library.TokenizerInfo.createTokenizerInfo(spellings(), 'byte_level', false, vocabSize, [...stopIds]);
    return library.GrammarCompiler.createGrammarCompiler(info, false);
  }

  /** Schemas become grammars without optional white space: a model cannot fill its answer with blanks. */
  async function ofSchema({ text, ranges }: SchemaText): Promise<string> {
    const grammar = await library.Grammar.fromJSONSchema(text, false, -1);
    let rules: string = grammar.toString();
    grammar.dispose();
    for (const [i, range] of ranges.entries()) {
      const mark = `\\"sigmoe number range ${i}\\"`;
      // A definition that nothing refers to leaves none.
      if (!rules.includes(mark)) continue;
      rules = `${rules.replaceAll(mark, `" number_range_${i} "`)}\nnumber_range_${i} ::= ${range}`;
    }
    if (rules.includes('sigmoe number range')) throw new Error('a range of numbers was not found');
    return rules;
  }

  async function parse(program: Program) {
    switch (program.kind) {
      case 'json':
        if (program.schema.ranges.length > 0) return library.Grammar.fromEBNF(await ofSchema(program.schema));
        return library.Grammar.fromJSONSchema(program.schema.text, false, -1);
      case 'grammar':
        return library.Grammar.fromEBNF(program.text);
      case 'regex':
        return library.Grammar.fromStructuralTag({ type: 'regex', pattern: program.pattern });
      case 'calls': {
        const tags = [];
        for (const { name, schema } of program.tools) {
          const content = { type: 'grammar' as const, grammar: await ofSchema(schema) };
          const begin = `<tool_call>\n{"name": ${JSON.stringify(name)}, "arguments": `;
          tags.push({ type: 'tag' as const, begin, content, end: '}\n</tool_call>' });
        }
        const once = !program.parallel;
        const list = {
          type: 'tags_with_separator' as const,
          tags,
          separator: '\n',
          at_least_one: true,
          stop_after_first: once,
        };
        return library.Grammar.fromStructuralTag(list);
      }
    }
  }

  async function compile(key: string, program: Program): Promise<Reply> {
    if (grammars.has(key)) return {};
    const grammar = await parse(program);
    // What the library only warns of, it leaves out.
    const warning = said.find((line) => line.includes('[WARNING]'));
    if (warning !== undefined) {
      grammar.dispose();
      return { error: warning };
    }
    compiler ??= makeCompiler();
    const compiled = await (await compiler).compileGrammar(grammar);
    grammar.dispose();
    const walk = await library.GrammarMatcher.createGrammarMatcher(compiled);
    const first = await walk.getNextTokenBitmask();
    if (first.some((word: number) => word !== 0)) {
      grammars.set(key, { compiled, unused: [walk] });
      return {};
    }
    walk.dispose();
    compiled.dispose();
    return { error: 'no text fits it' };
  }

  async function open(matcher: number, key: string): Promise<Reply> {
    const grammar = grammars.get(key);
    if (grammar === undefined) return { error: 'its grammar was not compiled here' };
    const walk = grammar.unused.pop() ?? (await library.GrammarMatcher.createGrammarMatcher(grammar.compiled));
    walk.reset();
    matchers.set(matcher, { walk, key });
    return {};
  }

  async function masks(job: Job & { op: 'masks' }): Promise<Reply> {
    const matcher = matchers.get(job.matcher);
    if (matcher === undefined) return { error: 'it is not open' };
    const { walk } = matcher;
    if (job.rollback > 0) walk.rollBack(job.rollback);
    for (const id of job.accept) {
      if (matcher.broken === undefined && !walk.acceptToken(id)) matcher.broken = `token ${id} does not continue it`;
    }
    if (matcher.broken !== undefined) return { error: matcher.broken };
    const found = [await maskOf(walk)];
    if (isEmpty(found[0])) return { error: 'no token continues it' };
    for (const id of job.path) {
      // A stop id would end the matcher for good.
      if (setup.stopIds.includes(id) || !allows(found.at(-1), id) || !walk.acceptToken(id)) break;
      found.push(await maskOf(walk));
    }
    if (found.length > 1) walk.rollBack(found.length - 1);
    while (found.length > 1 && isEmpty(found.at(-1))) found.pop();
    const words = found[0]?.length ?? 0;
    const joined = new Int32Array(found.length * words);
    for (const [i, mask] of found.entries()) joined.set(mask, i * words);
    return { masks: joined };
  }

  async function maskOf(walk: GrammarMatcher): Promise<Int32Array> {
    return walk.isTerminated() ? onlyStops() : walk.getNextTokenBitmask();
  }

  function isEmpty(mask: Int32Array | undefined): boolean {
    return mask?.every((word) => word === 0) ?? true;
  }

  function allows(mask: Int32Array | undefined, id: number): boolean {
    return (((mask?.[id >> 5] ?? 0) >> (id & 31)) & 1) === 1;
  }

  function onlyStops(): Int32Array {
    const allowed = new Int32Array(Math.ceil(setup.vocabSize / 32));
    for (const id of setup.stopIds) allowed[id >> 5] = (allowed[id >> 5] ?? 0) | (1 << (id & 31));
    return allowed;
  }

  function close(number: number): void {
    const matcher = matchers.get(number);
    if (matcher === undefined) return;
    const { unused } = grammars.get(matcher.key) ?? {};
    if (unused !== undefined && unused.length < 64) unused.push(matcher.walk);
    else matcher.walk.dispose();
    matchers.delete(number);
  }

  function forget(key: string): void {
    const grammar = grammars.get(key);
    for (const walk of grammar?.unused ?? []) walk.dispose();
    grammar?.compiled.dispose();
    grammars.delete(key);
  }

  function run(job: Job): Promise<Reply> | undefined {
    switch (job.op) {
      case 'compile':
        return compile(job.key, job.program);
      case 'open':
        return open(job.matcher, job.key);
      case 'masks':
        return masks(job);
      case 'close':
        close(job.matcher);
        return undefined;
      case 'forget':
        forget(job.key);
        return undefined;
    }
  }

  async function answer(job: Job): Promise<void> {
    said = [];
    let reply: Reply | undefined;
    try {
      reply = await run(job);
    } catch (error) {
      reply = { error: said.find((line) => line.includes('[FATAL]')) ?? `the library failed: ${String(error)}`, fatal: true };
    }
    if (reply !== undefined)
      parentPort?.postMessage(reply, reply.masks === undefined ? [] : [reply.masks.buffer as ArrayBuffer]);
  }

  let queue = Promise.resolve();
  parentPort?.on('message', (job: Job) => {
    queue = queue.then(() => answer(job));
  });
}
