import { expect, test } from './fixtures.js';

const write = (request, n) =>
  request.post('/entries', { data: { name: `Guest ${n}`, email: `guest${n}@example.org`, text: `Entry ${n}` } });

for (const time of ['1st', '2nd', '3rd', '4th']) {
  test(`twenty guests at once, the ${time} time`, async ({ request }) => {
    const answers = await Promise.all(Array.from({ length: 20 }, (_, n) => write(request, n)));
    expect(answers.map((answer) => answer.status())).toEqual(Array(20).fill(201));
    expect(await (await request.get('/entries')).json()).toHaveLength(21);
  });
}

test('only the house', async ({ request }) => {
  expect(await (await request.get('/entries')).json()).toHaveLength(1);
});
