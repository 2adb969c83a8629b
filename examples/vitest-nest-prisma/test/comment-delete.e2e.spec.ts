import { expect, test } from 'vitest';
import { forum } from './forum';

const app = forum();

test('a comment is deleted', async () => {
  const { id } = await app.student();
  const made = await app.question(id);
  const said = (await app.ask('POST', `/questions/${made.id}/comments`, { authorId: id, content: 'Hm.' })).body;
  expect((await app.ask('DELETE', `/comments/${said.id}`)).status).toBe(204);
  expect(await app.prisma.comment.count()).toBe(0);
});
