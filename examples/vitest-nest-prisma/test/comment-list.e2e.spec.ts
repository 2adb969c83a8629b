import { expect, test } from 'vitest';
import { forum } from './forum';

const app = forum();

test('comments come with their authors', async () => {
  const ada = await app.student();
  const eve = await app.student('eve@example.test');
  const made = await app.question(ada.id);
  for (const { id } of [ada, eve]) await app.ask('POST', `/questions/${made.id}/comments`, { authorId: id, content: 'Hm.' });
  const told = (await app.ask('GET', `/questions/${made.id}/comments`)).body;
  expect(told.map((comment: { author: { email: string } }) => comment.author.email)).toEqual(['ada@example.test', 'eve@example.test']);
});
