// Preloaded into a process (NODE_OPTIONS=--import=...): writes every connection, name look-up and datagram it begins to the file of
// SIGMOE_TEST_CONNECTIONS, a line each.
import dgram from 'node:dgram';
import dns from 'node:dns';
import { appendFileSync } from 'node:fs';
import net from 'node:net';

const file = process.env.SIGMOE_TEST_CONNECTIONS;
const record = (line) => appendFileSync(file, `${line}\n`);

const { connect } = net.Socket.prototype;
net.Socket.prototype.connect = function (...args) {
  const [first] = Array.isArray(args[0]) ? args[0] : args;
  const { path, host = 'localhost', port = first } = typeof first === 'object' && first !== null ? first : { host: args[1] };
  record(typeof path === 'string' ? `unix ${path.replaceAll('\0', '@')}` : `connect ${host}:${port}`);
  return connect.apply(this, args);
};

for (const name of Object.keys(dns).filter((key) => /^(lookup|resolve|reverse)/.test(key))) {
  for (const module of [dns, dns.promises]) {
    const original = module[name];
    if (typeof original !== 'function') continue;
    module[name] = function (host, ...rest) {
      // An address that is looked up, as by a server that listens, asks nobody.
      if (net.isIP(host) === 0) record(`${name} ${host}`);
      return original.call(this, host, ...rest);
    };
  }
}

for (const name of ['send', 'connect']) {
  const original = dgram.Socket.prototype[name];
  dgram.Socket.prototype[name] = function (...args) {
    record(`datagram ${name}`);
    return original.apply(this, args);
  };
}
