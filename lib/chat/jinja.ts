/**
 * What is used of @huggingface/jinja, typed: the package's own declarations import each other without file extensions,
 * which Node's module resolution does not follow.
 */
import * as jinja from '@huggingface/jinja';

/** A value of a running template: a string, number, list (`value` is an array), object (`value` is a Map) or function. */
export interface Value {
  readonly type: string;
  readonly value: unknown;
  toString(): string;
}

/** A node of a parsed template. */
export interface Node {
  readonly type: string;
}

export interface Environment {
  /** Converts a JavaScript value; functions take and give JavaScript values. */
  set(name: string, value: unknown): Value;
  setVariable(name: string, value: Value): Value;
}

interface Package {
  Environment: new (parent?: Environment) => Environment;
  Interpreter: new (
    environment: Environment,
  ) => {
    run(program: Node): Value;
    evaluate(node: Node | undefined, environment: Environment): Value;
  };
  tokenize(template: string, options: { lstrip_blocks: boolean; trim_blocks: boolean }): unknown;
  parse(tokens: unknown): Node;
}

export const { Environment, Interpreter, tokenize, parse } = jinja as unknown as Package;
