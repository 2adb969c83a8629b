import { expect, test } from 'vitest';
import { forum } from './forum';

const app = forum();

test('a question is commented on', async () => {
  const { id } = await app.student();
  const made = await app.question(id);
  const said = await app.ask('POST', `/questions/${made.id}/comments`, { authorId: id, content: 'Hm.' });
  expect(said.body).toMatchObject({ id: 1, questionId: made.id, answerId: null });
});
