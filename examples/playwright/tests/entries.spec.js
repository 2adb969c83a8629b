import { expect, test } from './fixtures.js';

const ada = { name: 'Ada', email: 'ada@example.org', text: 'I was here' };
const texts = async (request) => (await (await request.get('/entries')).json()).map(({ text }) => text);

test('the house has written first', async ({ request }) => {
  expect(await texts(request)).toEqual(['Welcome!']);
});

// The same guest, the same address, the same number, in each of them: nothing is cleaned up.
for (const time of ['1st', '2nd', '3rd', '4th', '5th', '6th']) {
  test(`Ada is the first guest, the ${time} time`, async ({ request }) => {
    const response = await request.post('/entries', { data: ada });
    expect(response.status()).toBe(201);
    expect(await response.json()).toEqual({ id: 2 });
    expect(await texts(request)).toEqual(['Welcome!', 'I was here']);
  });
}

test('twice the same address is one guest', async ({ request }) => {
  await request.post('/entries', { data: ada });
  await request.post('/entries', { data: { ...ada, name: 'Countess', text: 'Again' } });
  const entries = await (await request.get('/entries')).json();
  expect(entries.map(({ name }) => name)).toEqual(['The house', 'Countess', 'Countess']);
});

test('no text, no entry, no guest', async ({ request }) => {
  expect((await request.post('/entries', { data: { ...ada, text: '' } })).status()).toBe(422);
  expect(await texts(request)).toEqual(['Welcome!']);
});
