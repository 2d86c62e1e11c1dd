/**
 * Where a process of several finds the others: flags as vLLM and SGLang have them, or what torchrun and other launchers put into
 * the environment. Of both, the flags count.
 */
import type { NodeOptions } from '../index.js';
import { CliError, EXIT_USAGE } from './failure.js';

export interface NodeFlags {
  nnodes?: number;
  nodeRank?: number;
  masterAddr?: string;
  masterPort?: number;
  distInitAddr?: string;
  headless?: boolean;
  allowNoWorldSecret?: boolean;
  nodeJoinTimeout?: number;
  nodeTimeout?: number;
}

export type Environment = Record<string, string | undefined>;

const DEFAULT_PORT = 29500;

/** This process among those that run one model; undefined when it is alone. */
export function nodeOptions(flags: NodeFlags, env: Environment): NodeOptions | undefined {
  const place = flags.nnodes === undefined ? placeOf(env) : { count: flags.nnodes, rank: flags.nodeRank };
  const { count, rank } = place;
  if (count === undefined || count === 1) {
    if (rank !== undefined && rank > 0) throw usage(`rank ${rank} of one node was asked for`, 'give --nnodes, or WORLD_SIZE');
    return undefined;
  }
  if (rank === undefined) throw usage(`${count} nodes were asked for, and no rank`, 'give --node-rank, or RANK');
  if (rank >= count) throw usage(`rank ${rank} of ${count} nodes was asked for`, 'ranks count from 0');
  if (flags.headless === true && rank === 0) throw usage('--headless was given to rank 0', 'it is the one that serves');
  const { localRank, onThisMachine } = 'localRank' in place ? place : { localRank: undefined, onThisMachine: undefined };
  return {
    rank,
    count,
    ...addressOf(flags, env),
    secret: env.SIGMOE_WORLD_SECRET || undefined,
    allowNoSecret: flags.allowNoWorldSecret,
    localRank,
    onThisMachine,
    joinMs: milliseconds(flags.nodeJoinTimeout),
    silenceMs: milliseconds(flags.nodeTimeout),
  };
}

// As torchrun sets them: one process a rank of its own, of which LOCAL_WORLD_SIZE are on this machine.
function placeOf(env: Environment) {
  return {
    count: whole(env, 'WORLD_SIZE'),
    rank: whole(env, 'RANK'),
    localRank: whole(env, 'LOCAL_RANK'),
    onThisMachine: whole(env, 'LOCAL_WORLD_SIZE'),
  };
}

function addressOf({ masterAddr, masterPort, distInitAddr }: NodeFlags, env: Environment): { address: string; port: number } {
  const [, host, port] = /^\[?(.*?)\]?:(\d+)$/.exec(distInitAddr ?? '') ?? [];
  if (distInitAddr !== undefined && host === undefined) {
    throw usage(`--dist-init-addr ${distInitAddr} is no address and port`, 'write it as 10.0.0.1:29500');
  }
  const address = masterAddr ?? host ?? env.MASTER_ADDR;
  if (address === undefined || address === '') {
    throw usage('several nodes were asked for, and no address of rank 0', 'give --master-addr, or MASTER_ADDR');
  }
  const given = masterPort ?? (port === undefined ? undefined : Number(port)) ?? whole(env, 'MASTER_PORT');
  return { address, port: given ?? DEFAULT_PORT };
}

function milliseconds(seconds: number | undefined): number | undefined {
  return seconds === undefined ? undefined : Math.round(seconds * 1000);
}

function whole(env: Environment, name: string): number | undefined {
  const text = env[name];
  if (text === undefined || text === '') return undefined;
  if (/^\d{1,9}$/.test(text)) return Number(text);
  throw usage(`${name} is ${JSON.stringify(text)}, not a whole number`, 'it is set by whoever started this process');
}

function usage(message: string, hint: string): CliError {
  return new CliError(message, hint, EXIT_USAGE);
}
