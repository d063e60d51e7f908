// An OpenID provider that is not ours, to sign in against: oidc-provider with its development
// interactions. Listens on a free port of this machine and prints its issuer on one line.
//
// The redirect URI of the one client is the first argument.

import { createServer } from 'node:http';
import { Provider } from 'oidc-provider';

const redirectUri = process.argv[2];
if (!redirectUri) {
  console.error('usage: node server.mjs REDIRECT_URI');
  process.exit(2);
}

const server = createServer();
server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    clients: [{
      client_id: 'daypass',
      client_secret: 'a secret that the test knows',
      redirect_uris: [redirectUri],
      grant_types: ['authorization_code'],
      response_types: ['code'],
    }],
    pkce: { required: () => true },
    scopes: ['openid', 'profile', 'email', 'groups'],
    claims: { openid: ['sub'], profile: ['name'], email: ['email'], groups: ['groups'] },
    // Left as it is by default: with conformIdTokenClaims the e-mail address and the groups are in the
    // user information, not in the ID token.
    findAccount: (_context, id) => ({
      accountId: id,
      claims: () => ({
        sub: id,
        name: `${id} of the third party`,
        email: `${id}@third-party.example.com`,
        groups: ['support', 'support-leads'],
      }),
    }),
    features: { devInteractions: { enabled: true } },
  });
  server.on('request', provider.callback());
  console.log(issuer);
});

// The test that started us holds the other end of stdin: when it is gone, so are we.
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
