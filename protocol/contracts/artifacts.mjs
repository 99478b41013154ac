// Takes {abi, bytecode, deployedBytecode} of each deployed contract from forge's output into
// artifacts/. `--check` compares instead of writing.
import { readFileSync, writeFileSync, mkdirSync } from "node:fs";

const CONTRACTS = [
  "BatchSettlement",
  "ERC3009DepositCollector",
  "Permit2",
  "ReceiptVerifier",
  "TestUSD",
  "TestWallet",
  "UptoProxy",
];
const check = process.argv.includes("--check");

const render = (name) => {
  const { abi, bytecode, deployedBytecode } = JSON.parse(readFileSync(`out/${name}.sol/${name}.json`, "utf8"));
  const artifact = { abi, bytecode: bytecode.object, deployedBytecode: deployedBytecode.object };
  return `${JSON.stringify(artifact, null, 1)}\n`;
};

const committed = (path) => {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
};

mkdirSync("artifacts", { recursive: true });
const stale = CONTRACTS.filter((name) => {
  const path = `artifacts/${name}.json`;
  const fresh = render(name);
  if (committed(path) === fresh) return false;
  if (!check) writeFileSync(path, fresh);
  return true;
});

if (check && stale.length > 0) {
  console.error(`contracts: artifacts differ from the sources: ${stale.join(", ")}. Run protocol/contracts/build.sh.`);
  process.exit(1);
}
console.log(`contracts: ${stale.length === 0 ? "artifacts are up to date" : `wrote ${stale.join(", ")}`}`);
