/**
 * The flags of `sigmoe serve`. Names are vLLM's where they mean the same, so that a published command line works; what it
 * asks for and holds here anyway is accepted and said once, what is not built is refused.
 */
import type { Command } from 'commander';
import { CliError, EXIT_USAGE } from '../../failure.js';
import { addEngineFlags, type EngineFlags, integer, number } from '../../flags.js';
import type { NodeFlags } from '../../nodes.js';

export interface ServeFlags extends EngineFlags, NodeFlags {
  model?: string;
  servedModelName?: string[];
  host: string;
  port: number;
  apiKey?: string[];
  apiKeyFile?: string;
  keyMaxConcurrency?: number;
  keyTokensPerMinute?: number;
  sslKeyfile?: string;
  sslCertfile?: string;
  allowedOrigins?: string[];
  allowedMethods?: string[];
  allowedHeaders?: string[];
  allowCredentials?: boolean;
  maxBodyBytes?: number;
  maxWaiting?: number;
  gpuMemoryUtilization?: number;
  maxNumBatchedTokens?: number;
  enablePrefixCaching?: boolean;
  dtype?: string;
  selftest?: string | true;
  trustRequestChatTemplate?: boolean;
  defaultSystemPrompt: string;
  disclaimer?: string;
  drainTimeout: number;
  logLevel: string;
  logContent?: boolean;
  page: boolean;
}

/** vLLM's flags that change nothing here, and why. */
const WITHOUT_EFFECT: readonly (readonly [flags: string, why: string])[] = [
  ['--trust-remote-code', 'no code of a model folder is ever run'],
  ['--enable-chunked-prefill', 'prompts are always read in chunks'],
  ['--async-scheduling', 'host and device always work at the same time'],
  ['--enforce-eager', 'nothing is compiled at the start'],
  ['--enable-auto-tool-choice', 'tool calls are always found'],
  ['--tool-call-parser <name>', 'the parser of this model family is used'],
  ['--enable-reasoning', 'reasoning is always told apart'],
  ['--reasoning-parser <name>', 'the parser of this model family is used'],
  ['--disable-log-requests', 'prompts are not logged'],
  ['--disable-log-stats', 'figures are at /metrics'],
  ['--swap-space <gib>', 'there is no swap space'],
  ['--block-size <n>', 'pages hold 128 tokens'],
  ['--quantization <name>', 'the checkpoint says how it is quantised'],
  ['--load-format <name>', 'checkpoints are safetensors'],
  ['--tokenizer-mode <name>', 'there is one'],
  ['--attention-backend <name>', 'there is one'],
  ['--distributed-executor-backend <name>', 'ranks are threads of this process, or of the nodes that --nnodes counts'],
];

/** vLLM's flags for what is not built here; 1 is what there is. */
const ONE_ONLY = ['--pipeline-parallel-size'] as const;

export function addServeFlags(command: Command): Command {
  command
    .optionsGroup('Server:')
    .option('--model <folder>', 'model folder, in place of the argument')
    .option(
      '--served-model-name <name>',
      'what requests call the model (may be repeated); default: the folder as given',
      collect,
    )
    .option('--host <address>', 'address to listen on; 0.0.0.0: all of this machine', '127.0.0.1')
    .option('--port <n>', 'port to listen on; 0: a free one', integer, 8000)
    .option('--drain-timeout <s>', 'how long running requests may go on after SIGTERM', number, 30)
    .option('--max-body-bytes <n>', 'largest request body', integer)
    .option('--max-waiting <n>', 'requests that may wait; more are refused with 429', integer)
    .option('--no-page', 'no chat page at /')
    .optionsGroup('Access:')
    .option('--api-key <key>', 'a key that requests must carry (may be repeated); also SIGMOE_API_KEY', collect)
    .option('--api-key-file <file>', 'one "id key" a line, and limits: max-concurrency=N tokens-per-minute=N')
    .option('--key-max-concurrency <n>', 'requests a key may have running', positive)
    .option('--key-tokens-per-minute <n>', 'tokens a key may use, prompts and answers together', positive)
    .option('--ssl-keyfile <file>', 'private key, for https')
    .option('--ssl-certfile <file>', 'certificate, for https')
    .option('--allowed-origins <origin>', 'origins whose pages may call the server, or a JSON array; *: any', listOf)
    .option('--allowed-methods <method>', 'methods those pages may use', listOf)
    .option('--allowed-headers <name>', 'headers those pages may send', listOf)
    .option('--allow-credentials', 'those pages may send cookies and passwords')
    .optionsGroup('Answers:')
    .option('--default-system-prompt <which>', 'for conversations without one: off | card | the text itself', 'off')
    .option(
      '--disclaimer <text>',
      'what readers of answers should know, shown by /version, /v1/models and the page: off | card | text',
    )
    .option('--trust-request-chat-template', 'accept chat templates in requests')
    .optionsGroup('Log:')
    .option('--log-level <level>', 'debug | info | warn | error | silent', 'info')
    .option('--log-content', 'log what is asked and answered');
  addEngineFlags(command)
    .option('--gpu-memory-utilization <share>', 'share of free memory for weights and KV cache', number)
    .option('--max-num-batched-tokens <n>', 'the same as --max-batched-tokens', integer)
    .option('--enable-prefix-caching', 'find prompts again that began alike (default)')
    .option('--no-enable-prefix-caching', 'the same as --no-prefix-cache')
    .option('--dtype <type>', 'type of activations: auto | bfloat16 | float32')
    .option(
      '--selftest [recording]',
      'serve only once the model answers as recorded; default: selftest.json of the model folder',
    );
  command
    .optionsGroup(
      'Several processes or machines (also MASTER_ADDR, MASTER_PORT, RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE):',
    )
    .option('--nnodes <n>', 'processes that share the ranks of the model; rank 0 serves, the others follow it', positive)
    .option('--node-rank <n>', 'this one of them', integer)
    .option('--master-addr <address>', 'of rank 0, which listens there for the others; set SIGMOE_WORLD_SECRET on all')
    .option('--master-port <n>', 'likewise; default: 29500', integer)
    .option('--dist-init-addr <address:port>', 'both in one')
    .option('--headless', 'does not serve (any rank but 0 does not)')
    .option('--allow-no-world-secret', 'do without the secret: any machine of the network may take a place or lead')
    .option('--node-join-timeout <s>', 'how long to wait until all are there; default: 600', number)
    .option('--node-timeout <s>', 'one that is silent for longer is lost, and the model with it; default: 30', number);
  for (const flag of ONE_ONLY) command.addOption(command.createOption(`${flag} <n>`, '1').argParser(integer).hideHelp());
  for (const [flag, why] of WITHOUT_EFFECT) command.addOption(command.createOption(flag, why).hideHelp());
  return command;
}

/** Refuses what is not built; returns a line for each flag that was given and changes nothing. */
export function readForeignFlags(command: Command): string[] {
  for (const flag of ONE_ONLY) {
    const value: unknown = command.getOptionValue(attributeOf(flag));
    if (value === undefined || value === 1) continue;
    throw new CliError(`${flag} ${String(value)} is not built`, 'leave it out, and use --tensor-parallel-size', EXIT_USAGE);
  }
  const given = WITHOUT_EFFECT.filter(([flag]) => command.getOptionValue(attributeOf(flag)) !== undefined);
  return given.map(([flag, why]) => `${flag.split(' ', 1)[0]} changes nothing: ${why}`);
}

function attributeOf(flag: string): string {
  const name = flag.split(' ', 1)[0] ?? '';
  return name.slice(2).replace(/-([a-z])/g, (_, letter: string) => letter.toUpperCase());
}

function collect(text: string, before: string[] = []): string[] {
  return [...before, text];
}

function positive(text: string): number {
  const value = integer(text);
  if (value < 1) throw new CliError(`expected a number of at least 1, found ${text}`, '', EXIT_USAGE);
  return value;
}

/** vLLM takes these as a JSON array; one at a time is easier to type. */
function listOf(text: string, before: string[] = []): string[] {
  if (!text.trimStart().startsWith('[')) return [...before, text];
  let list: unknown;
  try {
    list = JSON.parse(text);
  } catch {
    list = undefined;
  }
  if (Array.isArray(list) && list.every((item) => typeof item === 'string')) return [...before, ...(list as string[])];
  throw new CliError(`expected a JSON array of strings, found ${text}`, '', EXIT_USAGE);
}
