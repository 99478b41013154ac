// Loaded before Portkey's gateway, which has no setting for the address it listens at: without it
// the bench would open a port to the network. A server that names no host gets loopback.
import { Server } from "node:net";

const listen = Server.prototype.listen;
Server.prototype.listen = function (port, host, ...rest) {
  return listen.call(this, port, host ?? "127.0.0.1", ...rest);
};
