/** sigmoe serve: the OpenAI-compatible server, until SIGTERM or Ctrl-C. */
import { Command } from 'commander';
import { follow, type LoadOptions, Model, type NodeOptions, selftest } from '../../index.js';
import type { ApiKey, Logger, LogLevel, RunningServer, ServerOptions } from '../../server/index.js';
import { CliError, EXIT_INTERRUPTED, EXIT_USAGE } from '../failure.js';
import { engineOptions } from '../flags.js';
import { readText } from '../input.js';
import { interruptible } from '../interrupt.js';
import { findModel, readNotice } from '../load.js';
import { nodeOptions } from '../nodes.js';
import { write } from '../terminal.js';
import { failureOf } from './selftest.js';
import { addServeFlags, readForeignFlags, type ServeFlags } from './serve/flags.js';

/** The system prompt of the model card's examples. */
const CARD_SYSTEM_PROMPT = 'You are AntAngelMed, a helpful medical assistant.';
const CARD_DISCLAIMER =
  'Answers are for information only. They do not replace the diagnosis, advice or treatment of a physician. 回答仅供参考,不替代医生诊断。';
const LOG_LEVELS: readonly LogLevel[] = ['debug', 'info', 'warn', 'error', 'silent'];

export function serveCommand(): Command {
  const command = new Command('serve')
    .summary('serve the OpenAI API')
    .description("Serves the OpenAI API over HTTP. Flags carry vLLM's names where they mean the same.")
    .argument('[model]', 'model folder, or owner/name of a hub')
    .addHelpText('after', '\nExample:\n  sigmoe serve models/nano --port 8000 --served-model-name nano');
  return addServeFlags(command).action((path: string | undefined, flags: ServeFlags) => run(path, flags, command));
}

async function run(argument: string | undefined, given: ServeFlags, command: Command): Promise<void> {
  const named = modelPath(argument, given);
  const ineffective = readForeignFlags(command);
  const node = nodeOptions(given, process.env);
  const { path, flags } = await interruptible((signal) => findModel(named, given, signal));
  // Loaded here, so that other commands need not wait for the parts of the server.
  const server = await import('../../server/index.js');
  const log = server.createLog(logLevel(flags), process.stderr);
  const load = await loadOptions(flags);
  if (node !== undefined) {
    load.node = node;
    load.tensorParallelSize ??= node.count;
    if (node.rank > 0) return await followLeader(path, { ...load, node }, flags, log);
  }
  const notice = await readNotice(path);
  const options = await serverOptions(named, notice, flags, log, server);
  for (const line of ineffective) log.info(line);
  if (notice !== undefined) log.warn(notice);

  const aborted = new AbortController();
  const running = await listening(
    server.serve((onProgress) => loadTested(path, { ...load, onProgress, signal: aborted.signal }, flags, log), {
      ...options,
      ...(await tracingOf(server)),
      host: flags.host,
      port: flags.port,
    }),
    flags,
  );
  log.info({ url: running.url, model: options.modelName }, 'loading');
  const stop = signalled(log);
  try {
    const stopped = Symbol('stopped');
    const first = await Promise.race([running.ready, stop.then(() => stopped)]);
    if (first !== stopped) {
      log.info({ url: running.url, device: (first as Model).info.device.name }, 'ready');
      await write(`${running.url}\n`);
      await stop;
    }
  } finally {
    aborted.abort();
    await end(running, flags, log);
  }
}

/** The model, once it has passed its self-test where that was asked for: until then no request is taken. */
async function loadTested(path: string, load: LoadOptions, flags: ServeFlags, log: Logger): Promise<Model> {
  const model = await Model.load(path, load);
  if (flags.selftest === undefined) return model;
  try {
    const recording = flags.selftest === true ? undefined : flags.selftest;
    const report = await selftest(model, { recording, signal: load.signal });
    if (!report.passed) throw new CliError(failureOf(report), 'nothing is served; sigmoe selftest shows the whole report');
    log.info({ prompts: report.cases.length, rule: report.rule }, 'self-test passed');
    return model;
  } catch (error) {
    await model.dispose();
    throw error;
  }
}

/**
 * A node that does not serve. A signal does not end it at once: the leader, which had the same signal, may be finishing answers,
 * and ends its followers when it is done.
 */
async function followLeader(
  path: string,
  load: LoadOptions & { node: NodeOptions },
  { drainTimeout }: ServeFlags,
  log: Logger,
): Promise<void> {
  const { rank, count, address, port } = load.node;
  log.info({ rank, count, leader: `${address}:${port}` }, 'following');
  const aborted = new AbortController();
  let patience: NodeJS.Timeout | undefined;
  void signalled(log, 'waiting for the leader to end; a second signal ends at once').then(() => {
    patience = setTimeout(() => aborted.abort(), drainTimeout * 1000);
  });
  try {
    await follow(path, { ...load, signal: aborted.signal, onReady: () => log.info({ rank }, 'ready') });
    log.info('the leader has ended');
  } catch (error) {
    if (!aborted.signal.aborted) throw error;
    log.warn('ended before the leader');
  } finally {
    clearTimeout(patience);
  }
}

async function end(running: RunningServer, { drainTimeout }: ServeFlags, log: Logger): Promise<void> {
  const cut = await running.close(drainTimeout * 1000);
  if (cut > 0) log.warn({ cut }, 'requests still ran at the end of the drain timeout and were cut off');
  log.info('closed');
}

/** Settles at the first SIGTERM or SIGINT. A second one ends the process at once. */
function signalled(log: Logger, meaning = 'draining: no new requests; a second signal ends at once'): Promise<void> {
  return new Promise((resolve) => {
    let count = 0;
    const on = (name: NodeJS.Signals) => {
      count += 1;
      if (count > 1) process.exit(name === 'SIGINT' ? EXIT_INTERRUPTED : 143);
      log.info({ signal: name }, meaning);
      resolve();
    };
    process.on('SIGTERM', on).on('SIGINT', on);
  });
}

async function listening(server: Promise<RunningServer>, { host, port }: ServeFlags): Promise<RunningServer> {
  try {
    return await server;
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? error.code : undefined;
    if (code === 'EADDRINUSE') throw new CliError(`port ${port} of ${host} is in use`, 'choose another with --port');
    if (code === 'EACCES') throw new CliError(`port ${port} of ${host} may not be opened`, 'choose one above 1023 with --port');
    if (code === 'EADDRNOTAVAIL' || code === 'ENOTFOUND') throw new CliError(`${host} is no address of this machine`);
    throw error;
  }
}

function modelPath(argument: string | undefined, { model }: ServeFlags): string {
  if (argument !== undefined && model !== undefined && argument !== model) {
    throw new CliError('the model was named twice', 'give it as the argument or as --model', EXIT_USAGE);
  }
  const path = argument ?? model;
  if (path === undefined) throw new CliError('no model was named', 'sigmoe serve <folder>', EXIT_USAGE);
  return path;
}

function logLevel({ logLevel: level }: ServeFlags): LogLevel {
  const known = LOG_LEVELS.find((name) => name === level);
  if (known === undefined) throw new CliError(`--log-level: expected one of ${LOG_LEVELS.join(', ')}`, '', EXIT_USAGE);
  return known;
}

async function loadOptions(flags: ServeFlags): Promise<LoadOptions> {
  const options: LoadOptions = { ...engineOptions(flags), maxWaiting: flags.maxWaiting };
  if (flags.chatTemplate !== undefined) options.chatTemplate = await readText(flags.chatTemplate, 'chat template');
  options.memoryUtilization = flags.gpuMemoryUtilization;
  options.maxBatchedTokens = flags.maxNumBatchedTokens ?? options.maxBatchedTokens;
  if (flags.enablePrefixCaching === false) options.prefixCache = false;
  if (flags.dtype !== undefined && flags.dtype !== 'auto') options.compute = computeOf(flags.dtype);
  return options;
}

function computeOf(dtype: string): 'bfloat16' | 'float32' {
  if (dtype === 'bfloat16') return dtype;
  if (dtype === 'float32' || dtype === 'float') return 'float32';
  throw new CliError(`--dtype ${dtype} is not built`, 'bfloat16 has the range of float32 in the size of float16', EXIT_USAGE);
}

async function serverOptions(
  named: string,
  notice: string | undefined,
  flags: ServeFlags,
  log: Logger,
  server: typeof import('../../server/index.js'),
): Promise<ServerOptions> {
  const { defaultSystemPrompt: prompt, disclaimer = notice ?? 'off', allowedOrigins } = flags;
  return {
    modelName: flags.servedModelName ?? [named],
    keys: await keysOf(flags, server),
    limits: { maxConcurrency: flags.keyMaxConcurrency, tokensPerMinute: flags.keyTokensPerMinute },
    maxBodyBytes: flags.maxBodyBytes,
    tls: await tlsOf(flags),
    cors: allowedOrigins && {
      origins: allowedOrigins,
      methods: flags.allowedMethods,
      headers: flags.allowedHeaders,
      credentials: flags.allowCredentials,
    },
    defaultSystemPrompt: prompt === 'off' ? undefined : prompt === 'card' ? CARD_SYSTEM_PROMPT : prompt,
    disclaimer: disclaimer === 'off' ? undefined : disclaimer === 'card' ? CARD_DISCLAIMER : disclaimer,
    trustRequestChatTemplate: flags.trustRequestChatTemplate,
    log,
    logContent: flags.logContent,
    page: flags.page,
  };
}

async function keysOf(flags: ServeFlags, server: typeof import('../../server/index.js')): Promise<ApiKey[]> {
  const plain = [...(flags.apiKey ?? []), ...[process.env.SIGMOE_API_KEY ?? []].flat()];
  if (plain.includes('')) throw new CliError('an API key is empty', '', EXIT_USAGE);
  const keys = plain.map((key, i) => server.unnamedKey(key, i));
  if (flags.apiKeyFile === undefined) return keys;
  const text = await readText(flags.apiKeyFile, 'key file');
  try {
    return [...keys, ...server.parseKeyFile(text)];
  } catch (error) {
    throw new CliError(`${flags.apiKeyFile}, ${error instanceof Error ? error.message : String(error)}`);
  }
}

async function tlsOf({ sslKeyfile, sslCertfile }: ServeFlags): Promise<ServerOptions['tls']> {
  if (sslKeyfile === undefined && sslCertfile === undefined) return undefined;
  if (sslKeyfile === undefined || sslCertfile === undefined) {
    throw new CliError('--ssl-keyfile and --ssl-certfile go together', '', EXIT_USAGE);
  }
  return { key: await readText(sslKeyfile, 'private key'), cert: await readText(sslCertfile, 'certificate') };
}

async function tracingOf(server: typeof import('../../server/index.js')): Promise<Pick<ServerOptions, 'tracing'>> {
  return { tracing: await server.openTracing() };
}
