/** One model in several processes of this machine: the same answers as of one, and what becomes of them when a node is lost. */
import type { ChildProcessWithoutNullStreams } from 'node:child_process';
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterEach, describe, expect, test } from 'vitest';
import { type Environment, nodeOptions } from '../../lib/cli/nodes.js';
import { follow, InvalidArgumentError, Model } from '../../lib/index.js';
import { type Ended, ended, start } from '../cli/run.js';
import { type GreedyPrompt, golden, nano } from '../helpers/files.js';
import { freePort } from '../helpers/ports.js';

const { prompts } = JSON.parse(readFileSync(golden('nano/greedy.json'), 'utf8')) as { prompts: GreedyPrompt[] };

const started: ChildProcessWithoutNullStreams[] = [];
afterEach(() => {
  for (const child of started.splice(0)) child.kill('SIGKILL');
});

interface Node {
  child: ChildProcessWithoutNullStreams;
  end: Promise<Ended>;
  /** The first line on standard output: the URL of the leader. */
  url: Promise<string>;
}

/** A node as a launcher would start it: its place in the environment. */
function node(rank: number, count: number, port: number, args: string[] = [], env: Environment = {}, model = nano): Node {
  const common = ['--device', 'cpu', '--threads', '1', '--port', '0', '--max-model-len', '512', '--max-num-seqs', '4'];
  const child = start(['serve', model, ...common, ...args], {
    MASTER_ADDR: '127.0.0.1',
    MASTER_PORT: String(port),
    RANK: String(rank),
    WORLD_SIZE: String(count),
    ...env,
  });
  started.push(child);
  const end = ended(child);
  const url = Promise.race([
    new Promise<string>((resolve) => createInterface(child.stdout).once('line', resolve)),
    end.then(({ stderr }) => Promise.reject(new Error(stderr))),
  ]);
  url.catch(() => {});
  return { child, end, url };
}

async function complete(url: string, prompt: number[], maxTokens: number): Promise<{ status: number; text: string }> {
  const response = await fetch(`${url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ model: nano, prompt, temperature: 0, repetition_penalty: 1, max_tokens: maxTokens }),
  });
  const body = (await response.json()) as { choices?: { text: string }[]; error?: { message: string } };
  return { status: response.status, text: body.choices?.[0]?.text ?? body.error?.message ?? '' };
}

async function expectGoldens(url: string, which = prompts): Promise<void> {
  for (const { prompt_ids, greedy_ids, greedy_text } of which) {
    expect(await complete(url, prompt_ids, greedy_ids.length)).toEqual({ status: 200, text: greedy_text });
  }
}

/** SIGTERM ends the leader, and the leader its followers. */
async function expectCleanEnd([leader, ...followers]: Node[]): Promise<void> {
  leader?.child.kill('SIGTERM');
  expect((await leader?.end)?.status).toBe(0);
  for (const { end } of followers) {
    const { status, stderr } = await end;
    expect(stderr).toContain('the leader has ended');
    expect(status).toBe(0);
  }
}

describe('several processes', () => {
  test.each([
    { name: 'two, the leader first', count: 2, first: 0, args: [] },
    { name: 'four, the leader last', count: 4, first: 3, args: [] },
    {
      name: 'two of two ranks each, whole experts',
      count: 2,
      first: 0,
      args: ['--tensor-parallel-size', '4', '--enable-expert-parallel'],
    },
    { name: 'two that draft with the MTP layer', count: 2, first: 1, args: ['--speculative', 'mtp'] },
  ])('$name: the goldens', { timeout: 300_000 }, async ({ count, first, args }) => {
    const port = await freePort();
    const ranks = [first, ...Array.from({ length: count }, (_, rank) => rank).filter((rank) => rank !== first)];
    const nodes: Node[] = [];
    for (const rank of ranks) nodes[rank] = node(rank, count, port, ['--compute', 'float32', ...args]);
    await expectGoldens((await nodes[0]?.url) ?? '');
    await expectCleanEnd(nodes);
  });

  test("answers are one process's, at any temperature, by flags in place of the environment", {
    timeout: 300_000,
  }, async () => {
    const port = await freePort();
    const place = (rank: number) => ['--nnodes', '2', '--node-rank', String(rank), '--dist-init-addr', `127.0.0.1:${port}`];
    const secret = { SIGMOE_WORLD_SECRET: 'between us', RANK: '', WORLD_SIZE: '', MASTER_ADDR: '', MASTER_PORT: '' };
    const nodes = [0, 1].map((rank) => node(rank, 2, port, place(rank), secret));
    await using model = await Model.load(nano, { device: 'cpu', threads: 1, tensorParallelSize: 2, maxModelLen: 512 });
    const url = await nodes[0]?.url;
    for (const { prompt_ids } of prompts.slice(0, 3)) {
      const sampling = { temperature: 0.8, seed: 11 };
      const alone = await model.generate({ prompt: prompt_ids, maxTokens: 24, repetitionPenalty: 1.1, ...sampling }).result;
      const response = await fetch(`${url}/v1/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ model: nano, prompt: prompt_ids, max_tokens: 24, repetition_penalty: 1.1, ...sampling }),
      });
      const { choices } = (await response.json()) as { choices: { text: string }[] };
      expect(choices[0]?.text).toBe(alone.text);
    }
    await expectCleanEnd(nodes);
  });
});

describe('a node that is lost', () => {
  test('a follower that is killed: answers end with an error that names its rank, and the leader lives', {
    timeout: 120_000,
  }, async () => {
    const port = await freePort();
    const slow = ['--kernels', 'reference']; // the answer must not be whole before the signal is sent
    const [leader, follower] = [node(0, 2, port, slow), node(1, 2, port, slow)];
    const url = await leader.url;
    const [prompt] = prompts;
    const long = fetch(`${url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ model: nano, prompt: prompt?.prompt_ids, max_tokens: 400, ignore_eos: true, stream: true }),
    });
    const reader = (await long).body?.getReader();
    await reader?.read(); // it runs
    follower.child.kill('SIGKILL');
    let text = '';
    for (let part = await reader?.read(); part !== undefined && !part.done; part = await reader?.read()) {
      text += new TextDecoder().decode(part.value);
    }
    expect(text).toContain('"error"');
    const refused = await complete(url, prompt?.prompt_ids ?? [], 4);
    expect(refused.status).toBe(503);
    expect((await fetch(`${url}/health`)).status).toBe(503);
    leader.child.kill('SIGTERM');
    const { status, stderr } = await leader.end;
    expect(stderr).toContain('rank 1 (node 1 at 127.0.0.1) is lost');
    expect(status).toBe(0);
  });

  test('a leader that is killed: the follower ends with a line that says so', { timeout: 120_000 }, async () => {
    const port = await freePort();
    const [leader, follower] = [node(0, 2, port), node(1, 2, port)];
    await leader.url;
    leader.child.kill('SIGKILL');
    const { status, stderr } = await follower.end;
    expect(stderr).toMatch(/sigmoe: ERR_DEVICE: rank 0 \(node 0 at 127\.0\.0\.1:\d+\) is lost/);
    expect(status).toBe(1);
  });

  test('one that is stopped is lost after its time', { timeout: 120_000 }, async () => {
    const port = await freePort();
    const patience = ['--node-timeout', '10']; // longer than a busy machine keeps a node that runs from saying so
    const [leader, follower] = [node(0, 2, port, patience), node(1, 2, port, patience)];
    const url = await leader.url;
    follower.child.kill('SIGSTOP');
    const answer = await complete(url, prompts[0]?.prompt_ids ?? [], 8);
    expect(answer.status).toBe(503);
    leader.child.kill('SIGTERM');
    expect((await leader.end).stderr).toContain('nothing was heard for 10000 ms');
  });
});

describe('who is let in', () => {
  test('a wrong secret is refused, garbage is passed over, and the right one gets in', { timeout: 120_000 }, async () => {
    const port = await freePort();
    const leader = node(0, 2, port, [], { SIGMOE_WORLD_SECRET: 'right' });
    const wrong = await node(1, 2, port, [], { SIGMOE_WORLD_SECRET: 'wrong' }).end;
    expect(wrong.status).toBe(1);
    expect(wrong.stderr).toContain('the leader refused this node: its secret is another');
    await new Promise<void>((resolve) => {
      const stranger = connect(port, '127.0.0.1', () => stranger.end('GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n'));
      stranger.on('error', () => {}).on('close', () => resolve());
      stranger.resume();
    });
    const follower = node(1, 2, port, [], { SIGMOE_WORLD_SECRET: 'right' });
    await expectGoldens(await leader.url, prompts.slice(0, 1));
    await expectCleanEnd([leader, follower]);
  });

  test('another model, though of the same shape, ends both with a line that says what differs', {
    timeout: 120_000,
  }, async () => {
    const folder = mkdtempSync(join(tmpdir(), 'sigmoe-node-'));
    try {
      cpSync(nano, folder, { recursive: true });
      const config = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8')) as Record<string, unknown>;
      writeFileSync(join(folder, 'config.json'), JSON.stringify({ ...config, rope_theta: Number(config.rope_theta) * 2 }));
      const port = await freePort();
      const ends = await Promise.all([node(0, 2, port).end, node(1, 2, port, [], {}, folder).end]);
      for (const { status, stderr } of ends) {
        expect(status).toBe(1);
        expect(stderr).toMatch(/node 1 at 127\.0\.0\.1 does not fit: 'model: \w+' there, 'model: \w+' on the leader/);
      }
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });

  test('without a secret, only on addresses of this machine alone', async () => {
    const { status, stderr } = await node(0, 2, await freePort(), [], { MASTER_ADDR: '192.0.2.1' }).end;
    expect(status).toBe(1);
    expect(stderr).toContain('no secret is set - set SIGMOE_WORLD_SECRET');
  });
});

describe('what a node is told', () => {
  const env = { WORLD_SIZE: '4', RANK: '3', MASTER_ADDR: 'a', MASTER_PORT: '1234', LOCAL_RANK: '1', LOCAL_WORLD_SIZE: '2' };

  test('by a launcher', () => {
    expect(nodeOptions({}, {})).toBeUndefined();
    expect(nodeOptions({}, { WORLD_SIZE: '1', RANK: '0' })).toBeUndefined();
    expect(nodeOptions({}, { ...env, SIGMOE_WORLD_SECRET: 's' })).toMatchObject({
      ...{ rank: 3, count: 4, address: 'a', port: 1234, localRank: 1, onThisMachine: 2, secret: 's' },
    });
  });

  test("by vLLM's and SGLang's flags, which count before the environment", () => {
    const vllm = { nnodes: 2, nodeRank: 1, masterAddr: 'b', headless: true, nodeTimeout: 5 };
    expect(nodeOptions(vllm, env)).toMatchObject({ rank: 1, count: 2, address: 'b', port: 1234, silenceMs: 5000 });
    expect(nodeOptions(vllm, {})?.port).toBe(29500);
    const sglang = { nnodes: 2, nodeRank: 0, distInitAddr: '[fd00::1]:20000' };
    expect(nodeOptions(sglang, {})).toMatchObject({ rank: 0, count: 2, address: 'fd00::1', port: 20000 });
  });

  test.each([
    [{ nnodes: 2 }, {}, 'no rank'],
    [{ nnodes: 2, nodeRank: 2 }, {}, 'rank 2 of 2'],
    [{ nnodes: 2, nodeRank: 0 }, {}, 'no address of rank 0'],
    [{ nnodes: 2, nodeRank: 0, headless: true }, {}, '--headless was given to rank 0'],
    [{ nnodes: 2, nodeRank: 0, distInitAddr: 'a' }, {}, 'no address and port'],
    [{ nodeRank: 1 }, { RANK: '1' }, 'rank 1 of one node'],
    [{}, { ...env, WORLD_SIZE: 'x' }, 'WORLD_SIZE is "x"'],
    [{}, { ...env, RANK: '' }, 'no rank'],
  ])('%j and %j are refused', (flags, environment, message) => {
    expect(() => nodeOptions(flags, environment)).toThrow(message);
  });

  test('what no node could do is refused by the library', async () => {
    const load = (options: object) => Model.load(nano, { device: 'cpu', ...options });
    await expect(load({ tensorParallelSize: 3, node: { rank: 0, count: 2 } })).rejects.toThrow('a multiple of the 2 nodes');
    await expect(load({ tensorParallelSize: 2, node: { rank: 2, count: 2 } })).rejects.toThrow('node.rank');
    await expect(load({ tensorParallelSize: 2, node: { rank: 1, count: 2 } })).rejects.toThrow('does not lead');
    await expect(load({ tensorParallelSize: 2, node: { rank: 0, count: 2, adress: 'x' } })).rejects.toThrow(
      'unknown option "adress"',
    );
    await expect(load({ tensorParallelSize: 2, dataParallelSize: 2, node: { rank: 0, count: 2 } })).rejects.toThrow(
      'on several nodes',
    );
    await expect(follow(nano, { tensorParallelSize: 2, node: { rank: 0, count: 2 } })).rejects.toThrow(InvalidArgumentError);
    const port = await freePort();
    const signal = AbortSignal.timeout(300);
    await expect(follow(nano, { tensorParallelSize: 2, node: { rank: 1, count: 2, port }, signal })).rejects.toThrow(
      'told to end',
    );
    await expect(load({ tensorParallelSize: 2, node: { rank: 0, count: 2, port, joinMs: 200 } })).rejects.toThrow(
      '1 of 2 nodes',
    );
  });
});
