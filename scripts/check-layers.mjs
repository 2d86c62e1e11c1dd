// The layering, as a linter rule: who may include or import whom. For C++ the build enforces it too (each CMake target
// sees only its own include folders); this check names the line, and knows the rules of TypeScript.
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, normalize, relative } from 'node:path';
import { root } from './tools.mjs';

const problems = [];

function filesUnder(folder, ending) {
  return readdirSync(join(root, folder), { recursive: true })
    .map((name) => join(folder, name))
    .filter((name) => ending.test(name) && !name.includes('third_party'));
}

function eachMatch(file, pattern, visit) {
  readFileSync(join(root, file), 'utf8')
    .split('\n')
    .forEach((line, index) => {
      for (const match of line.matchAll(pattern)) visit(match[1], `${file}:${index + 1}`);
    });
}

// ---- C++: what a folder may include between quotes ---------------------------------------------------------------

const json = /^nlohmann\//;
const cppRules = [
  { folder: 'csrc/backend', allowed: [/^backend\//] },
  { folder: 'csrc/engine', allowed: [/^backend\//, /^engine\//, json] },
  { folder: 'csrc/binding', allowed: [/^engine\/engine\.h$/, /^backend\/error\.h$/, /^binding\//, /^napi\.h$/] },
  { folder: 'kernels/cpu', allowed: [/^backend\//, /^cpu\//] },
  { folder: 'kernels/cuda', allowed: [/^backend\//, /^cuda\//] },
  { folder: 'kernels/ascend', allowed: [/^backend\//, /^ascend\//, /^kernel_operator\.h$/] },
  { folder: 'bench/native', allowed: [/^backend\//, /^engine\//, /^cuda\//, json, /^[^/]+\.h$/] },
  {
    folder: 'test/native',
    allowed: [/^backend\//, /^engine\//, /^cpu\//, /^cuda\//, /^ascend\//, json, /^doctest\//, /^[^/]+\.h$/],
  },
];
// Headers of a platform belong to one folder, whichever brackets are used; tests may take a kernel apart.
const platformHeaders = [
  { pattern: /^(napi\.h|node_api\.h|js_native_api\.h|v8\.h|uv\.h)$/, folder: 'csrc/binding' },
  { pattern: /^(immintrin\.h|arm_neon\.h|cpuid\.h)$/, folder: 'kernels/cpu' },
];

for (const { folder, allowed } of cppRules) {
  let files = [];
  try {
    files = filesUnder(folder, /\.(h|cpp|inl|cu|cuh|asc|def)$/);
  } catch (error) {
    if (error.code !== 'ENOENT') throw error;
  }
  for (const file of files) {
    eachMatch(file, /^\s*#\s*include\s*"([^"]+)"/g, (header, place) => {
      if (header.split('/').includes('..') || !allowed.some((pattern) => pattern.test(header))) {
        problems.push(`${place}: ${folder} may not include "${header}"`);
      }
    });
    eachMatch(file, /^\s*#\s*include\s*[<"]([^>"]+)[>"]/g, (header, place) => {
      const rule = platformHeaders.find(({ pattern }) => pattern.test(header));
      if (rule !== undefined && folder !== rule.folder && folder !== 'test/native')
        problems.push(`${place}: <${header}> belongs to ${rule.folder} alone`);
    });
  }
}

// ---- TypeScript --------------------------------------------------------------------------------------------------

const imports = /(?:\bfrom\s+|\bimport\s*\(\s*|\bimport\s+|\brequire\s*\(\s*)'([^']+)'/g;

// The server, the benchmarks and bundles are not part of the package's API; the commands that run them are their only callers.
const cliDoors = ['lib/index.js', 'lib/bench/index.js', 'lib/bundle/index.js', 'lib/server/index.js'];

for (const file of filesUnder('lib', /\.ts$/)) {
  const inCli = file.startsWith('lib/cli/');
  eachMatch(file, imports, (module, place) => {
    if (module === 'node-gyp-build' && file !== 'lib/addon.ts') problems.push(`${place}: only lib/addon.ts loads the addon`);
    if (module === 'undici' && file !== 'lib/hub/http.ts') problems.push(`${place}: only lib/hub/http.ts connects to hubs`);
    if (module === 'fastify' && !file.startsWith('lib/server/')) problems.push(`${place}: only lib/server speaks HTTP`);
    if (!module.startsWith('.')) return;
    const target = normalize(join(dirname(file), module));
    if (relative('lib', target).startsWith('..')) problems.push(`${place}: ${module} is outside lib`);
    if (target === 'lib/addon.js' && file !== 'lib/native.ts')
      problems.push(`${place}: the addon is asked for in lib/native.ts`);
    if (inCli && !cliDoors.includes(target) && !target.startsWith('lib/cli/')) {
      problems.push(`${place}: the CLI uses the library as its users do, through ${cliDoors.join(' or ')}, not ${module}`);
    }
    if (file.startsWith('lib/bench/') && target !== 'lib/index.js' && !target.startsWith('lib/bench/')) {
      problems.push(`${place}: benchmarks measure what users of lib/index.js get, not ${module}`);
    }
    const serverMayUse = ['lib/index.js', 'lib/openai/index.js'].includes(target) || target.startsWith('lib/server/');
    if (file.startsWith('lib/server/') && !serverMayUse) {
      problems.push(`${place}: the server stands on lib/index.js and lib/openai/index.js, not on ${module}`);
    }
    if (!inCli && !file.startsWith('lib/server/') && target.startsWith('lib/server/')) {
      problems.push(`${place}: the library does not know its server`);
    }
    if (!inCli && target.startsWith('lib/cli/')) problems.push(`${place}: the library does not know its CLI`);
  });
  eachMatch(file, /(process\.dlopen|[\w./-]+\.node\b)(?=['"(])/g, (found, place) => {
    if (file !== 'lib/addon.ts') problems.push(`${place}: ${found}: only lib/addon.ts loads the addon`);
  });
}

for (const problem of problems) console.error(problem);
console.log(problems.length === 0 ? 'layers: clean' : `layers: ${problems.length} wrong`);
process.exitCode = problems.length === 0 ? 0 : 1;
