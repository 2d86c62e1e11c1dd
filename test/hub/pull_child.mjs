// A pull in a process of its own, to be killed: node pull_child.mjs ID POLICY
import { pullWith } from '../../dist/hub/pull.js';

const [, , id, policy] = process.argv;
const onNote = (line) => console.error(line);
const result = await pullWith(id, { maxWorkers: 4, onNote }, JSON.parse(policy));
console.log(JSON.stringify(result));
