import { expect, test } from 'vitest';
import { forum } from './forum';

const app = forum();

test('an answer is commented on', async () => {
  const { id } = await app.student();
  const given = await app.answer((await app.question(id)).id, id);
  const said = await app.ask('POST', `/answers/${given.id}/comments`, { authorId: id, content: 'Hm.' });
  expect(said.body).toMatchObject({ id: 1, questionId: null, answerId: given.id });
});
