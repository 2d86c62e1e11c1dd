/**
 * Checks a request body against its schema. A field the schema does not name is refused by name; null stands for absent,
 * as clients send it so; what is wrong is said without repeating any text of the body.
 */
import type { Static, TObject, TSchema } from 'typebox';
import { Compile } from 'typebox/compile';
import { badRequest, type OpenAIError } from './errors.js';

const MAX_NAME_CHARACTERS = 64;
/** Deeper values would overflow the stack of whoever walks them, JSON.stringify included. */
const MAX_DEPTH = 128;

/** A schema may carry `expected`: what it takes, in words. */
type Described = TSchema & {
  expected?: string;
  anyOf?: Described[];
  properties?: Record<string, Described>;
  items?: Described;
};

export class BodyReader<T extends TObject> {
  private readonly validator;
  private readonly known: ReadonlySet<string>;

  constructor(private readonly schema: T) {
    this.validator = Compile(schema);
    this.known = new Set(Object.keys(schema.properties));
  }

  /** The body as its type; `body` is an object or JSON text. */
  read(body: unknown): Static<T> {
    const value = typeof body === 'string' ? parseBody(body) : body;
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
      throw badRequest(null, `the request body: expected a JSON object, found ${kindOf(value)}`);
    }
    const fields: Record<string, unknown> = {};
    for (const name of Object.keys(value)) {
      if (!this.known.has(name)) throw this.unknownField(name);
      const field = (value as Record<string, unknown>)[name];
      if (field === null || field === undefined) continue;
      if (isDeeper(field, MAX_DEPTH)) throw badRequest(name, `${name}: nested more than ${MAX_DEPTH} levels deep`);
      fields[name] = field;
    }
    if (!this.validator.Check(fields)) throw this.firstProblem(fields);
    return fields as Static<T>;
  }

  private unknownField(path: string): OpenAIError {
    const shown = path.length > MAX_NAME_CHARACTERS ? `${path.slice(0, MAX_NAME_CHARACTERS)}...` : path;
    return badRequest(shown, `unknown field ${JSON.stringify(shown)}`, 'unknown_parameter');
  }

  private firstProblem(fields: Record<string, unknown>): OpenAIError {
    const all = this.validator.Errors(fields);
    // What is inside a union is said of the union: which of its forms was meant, nobody knows.
    const own = all.filter(({ schemaPath }) => !schemaPath.includes('/anyOf/'));
    const first = own.find(({ keyword }) => keyword !== 'required') ?? own[0] ?? all[0];
    if (first === undefined) return badRequest(null, 'the request body does not have the expected form');
    const keys = segments(first.instancePath);
    if (first.keyword === 'boolean') return this.unknownField(pathOf(keys));
    if (first.keyword === 'required') {
      const path = pathOf([...keys, first.params.requiredProperties[0] ?? '']);
      return badRequest(path, `${path}: missing`, 'missing_required_parameter');
    }
    const { expected, depth } = this.expectation(keys);
    const place = keys.slice(0, depth);
    const path = pathOf(place);
    let found: unknown = fields;
    for (const key of place) found = (found as Record<string, unknown> | undefined)?.[key];
    const wanted = expected === undefined ? first.message : `expected ${expected}, found ${describe(found)}`;
    return badRequest(path, `${path}: ${wanted}`);
  }

  /** The innermost schema on the way to a value that says in words what it takes, and how deep it lies. */
  private expectation(keys: readonly string[]): { expected: string | undefined; depth: number } {
    let schema: Described | undefined = this.schema as Described;
    let best: { expected: string | undefined; depth: number } = { expected: undefined, depth: keys.length };
    for (const [i, key] of keys.entries()) {
      schema = schema?.properties?.[key] ?? schema?.items;
      if (schema === undefined) break;
      if (schema.expected !== undefined) best = { expected: schema.expected, depth: i + 1 };
    }
    return best;
  }
}

function parseBody(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    // The parser's own message quotes the body.
    throw badRequest(
      null,
      text.trim() === '' ? 'the request body is empty: expected JSON' : 'the request body is not valid JSON',
    );
  }
}

function isDeeper(value: unknown, limit: number): boolean {
  let level: unknown[] = [value];
  for (let depth = 0; level.length > 0; depth++) {
    if (depth > limit) return true;
    const next: unknown[] = [];
    for (const node of level) {
      if (typeof node !== 'object' || node === null) continue;
      for (const child of Object.values(node)) if (typeof child === 'object' && child !== null) next.push(child);
    }
    level = next;
  }
  return false;
}

function segments(pointer: string): string[] {
  return pointer
    .split('/')
    .slice(1)
    .map((part) => part.replaceAll('~1', '/').replaceAll('~0', '~'));
}

/** `messages[0].role` */
function pathOf(keys: readonly string[]): string {
  return keys.map((key, i) => (/^\d+$/.test(key) ? `[${key}]` : i === 0 ? key : `.${key}`)).join('');
}

function describe(value: unknown): string {
  return typeof value === 'number' || typeof value === 'boolean' ? String(value) : kindOf(value);
}

function kindOf(value: unknown): string {
  if (value === null) return 'null';
  if (value === undefined) return 'nothing';
  if (Array.isArray(value)) return value.length === 0 ? 'an empty array' : 'an array';
  return typeof value === 'object' ? 'an object' : `a ${typeof value}`;
}
