/** What a request's tools ask of the answer: whether calls are looked for, and whether one must come. */
import { toolCallGrammar } from '../chat/tool_calls.js';
import { badRequest } from './errors.js';
import type { WantedForm } from './structured.js';

export type ToolChoice = 'none' | 'auto' | 'required' | { name: string };

export interface OfferedTool {
  name: string;
  parameters?: Record<string, unknown> | null;
}

/** Checks a choice against the tools; true when the tools are shown to the model. */
export function offersTools(tools: readonly OfferedTool[] | undefined, choice: ToolChoice): boolean {
  if (choice === 'none' || tools === undefined || tools.length === 0) {
    if (choice === 'none' || choice === 'auto') return false;
    throw badRequest('tool_choice', 'tool_choice: needs tools to choose from');
  }
  if (typeof choice === 'string' || tools.some(({ name }) => name === choice.name)) return true;
  throw badRequest('tool_choice', 'tool_choice: names a function that is not among the tools');
}

/** The form of the answer: the one that was asked for, or that of the call which must come. */
export function formWithTools(
  wanted: WantedForm | undefined,
  tools: readonly OfferedTool[],
  choice: ToolChoice,
  parallel: boolean,
): WantedForm | undefined {
  if (wanted !== undefined) {
    const message = `${wanted.field}: excludes tools, since a call is no such answer: send "tool_choice": "none" or no tools`;
    throw badRequest(wanted.field, message);
  }
  if (choice === 'auto' || choice === 'none') return undefined;
  const definitions = tools.map(({ name, parameters }) => ({
    type: 'function' as const,
    function: parameters ? { name, parameters } : { name },
  }));
  return { field: 'tool_choice', form: toolCallGrammar(definitions, choice, parallel) };
}
