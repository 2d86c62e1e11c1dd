/** The spellings of "the answer must have this form": response_format, structured_outputs, and the older guided_*. */
import type { StructuredOutput } from '../types.js';
import { badRequest } from './errors.js';
import type { ResponseFormat, StructuredFields } from './schema.js';

/** A form, and the field of the body that asked for it. */
export interface WantedForm {
  form: StructuredOutput;
  field: string;
}

export function wantedForm(body: StructuredFields & { response_format?: ResponseFormat }): WantedForm | undefined {
  const wanted: WantedForm[] = [];
  const add = (field: string, form: StructuredOutput | undefined) => {
    if (form !== undefined) wanted.push({ field, form });
  };
  add('response_format', formOfResponse(body.response_format));
  const { structured_outputs: own } = body;
  if (own !== undefined) {
    add('structured_outputs.json', own.json === undefined ? undefined : { json: own.json });
    add('structured_outputs.json_object', own.json_object === undefined ? undefined : { jsonObject: true });
    add('structured_outputs.regex', own.regex === undefined ? undefined : { regex: own.regex });
    add('structured_outputs.choice', own.choice === undefined ? undefined : { choice: own.choice });
    add('structured_outputs.grammar', own.grammar === undefined ? undefined : { grammar: own.grammar });
    if (Object.keys(own).length === 0)
      throw badRequest('structured_outputs', 'structured_outputs: expected one form, found none');
  }
  add('guided_json', body.guided_json === undefined ? undefined : { json: body.guided_json });
  add('guided_regex', body.guided_regex === undefined ? undefined : { regex: body.guided_regex });
  add('guided_choice', body.guided_choice === undefined ? undefined : { choice: body.guided_choice });
  add('guided_grammar', body.guided_grammar === undefined ? undefined : { grammar: body.guided_grammar });
  const [first, second] = wanted;
  if (first !== undefined && second !== undefined) {
    throw badRequest(second.field, `${second.field}: excludes ${first.field}: an answer can have one form`);
  }
  return first;
}

function formOfResponse(format: ResponseFormat | undefined): StructuredOutput | undefined {
  if (format === undefined) return undefined;
  if (format.type !== 'json_schema') return format.type === 'json_object' ? { jsonObject: true } : undefined;
  const { schema } = format.json_schema;
  return schema === undefined ? { jsonObject: true } : { json: schema };
}
