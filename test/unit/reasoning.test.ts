import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { opensReasoning, ReasoningParser } from '../../lib/chat/reasoning.js';

function parse(pieces: string[], opened = false): { text: string; reasoning: string } {
  const parser = new ReasoningParser(opened);
  const parts = [...pieces.map((piece) => parser.push(piece)), parser.flush()];
  return { text: parts.map((part) => part.text).join(''), reasoning: parts.map((part) => part.reasoning).join('') };
}

describe('reasoning', () => {
  const cases: [name: string, output: string, opened: boolean, expected: { text: string; reasoning: string }][] = [
    ['no thinking', 'Drink water.', false, { text: 'Drink water.', reasoning: '' }],
    ['tags in the output', '\n<think>\nwhy\n\nso\n</think>\n\nRest.', false, { text: 'Rest.', reasoning: 'why\n\nso' }],
    ['opening tag in the prompt', '\nwhy\n</think>\n\nRest.', true, { text: 'Rest.', reasoning: 'why' }],
    ['empty thinking', '<think>\n\n</think>\n\nRest.', false, { text: 'Rest.', reasoning: '' }],
    ['cut off while thinking', '<think>\nwhy\n', false, { text: '', reasoning: 'why' }],
    ['a tag later in the answer is text', 'see <think>x</think>', false, { text: 'see <think>x</think>', reasoning: '' }],
    ['almost a tag', '<thin air', false, { text: '<thin air', reasoning: '' }],
    ['almost a closing tag', '<think>a </thin b</think>c', false, { text: 'c', reasoning: 'a </thin b' }],
    ['only white space', ' \n', false, { text: ' \n', reasoning: '' }],
  ];

  test.each(cases)('%s', (_, output, opened, expected) => {
    expect(parse([output], opened)).toEqual(expected);
    expect(parse([...output], opened)).toEqual(expected);
  });

  test('does not depend on where the output was cut', () => {
    const atom = fc.constantFrom('<think>', '</think>', '<', '</th', 'ink>', '\n', 'a', ' ');
    fc.assert(
      fc.property(fc.array(atom, { maxLength: 12 }), fc.boolean(), (atoms, opened) => {
        expect(parse(atoms, opened)).toEqual(parse([atoms.join('')], opened));
      }),
      { numRuns: 2000 },
    );
  });

  test('a prompt that ends with the tag leaves the model thinking', () => {
    expect(opensReasoning('<role>ASSISTANT</role><think>\n')).toBe(true);
    expect(opensReasoning('<role>ASSISTANT</role>')).toBe(false);
  });
});
