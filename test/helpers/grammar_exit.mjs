// Opens a grammar, asks for a mask and closes nothing: the process must end by itself.
import { Grammars } from '../../dist/grammar/matcher.js';
import { Tokenizer } from '../../dist/index.js';

const tokenizer = await Tokenizer.load(process.argv[2]);
const grammars = new Grammars({ tokenizer, vocabSize: tokenizer.vocabSize, stopIds: tokenizer.stopIds });
const matcher = await grammars.open({ choice: ['yes', 'no'] });
await matcher.mask();
console.log('open');
