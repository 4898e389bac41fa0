// The Chromium of these tests, which trusts the relay's certificate by its key.
//
// Environment: RELAY_CERT (PEM of the relay's certificate), CHROMIUM (default /usr/bin/chromium).
import { createHash, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

// Chromium accepts a certificate whose key has this hash; any other untrusted certificate still fails.
function keyHash(file) {
  const key = new X509Certificate(readFileSync(file)).publicKey.export({ type: "spki", format: "der" });
  return createHash("sha256").update(key).digest("base64");
}

export function launch() {
  const args = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
  ];
  if (process.env.RELAY_CERT) args.push(`--ignore-certificate-errors-spki-list=${keyHash(process.env.RELAY_CERT)}`);
  return chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", headless: true, args });
}
